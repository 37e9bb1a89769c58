"""The review page of duplicates: groups beside each other, with what was decided of them.

`deciding.py` takes the decisions.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..explore import decisions
from ..explore.decisions import Group, Member, Scan, Summary, Tally
from ..explore.duplicates import TIERS
from ..explore.exports import caption_text
from ..explore.facts import Facts, facts_of
from .answers import ask_database, csv_answer, json_answer, page, tells_errors, wants_json
from .curate import may_curate
from .question import PageError, Place, find_place
from .tiles import caption_column

if TYPE_CHECKING:
    from datasette.app import Datasette

# (title, what is in it) by tier.
MEANING = {
    "identical": ("Identical files", "The same bytes, stored more than once."),
    "same": (
        "Same picture",
        "One picture in several versions: resized, re-encoded or lightly edited. "
        "Embedding, perceptual hash and detail agree.",
    ),
    "alike": (
        "Look-alikes",
        "Pictures that the encoder finds nearly equal. Many are different pictures of one "
        "thing: look at each.",
    ),
}
SHOWN = 48  # pictures of one group at most; decisions count for all
IN_LIST = 8  # pictures of one group in the list of groups
LISTED = 20  # groups a page of the list


@dataclass(frozen=True)
class Asked:
    """The parameters of the page."""

    tier: str | None
    group: int | None
    view: str  # "one" or "all"
    state: str | None  # "open", "decided"
    size: int
    after: int  # groups behind the one with this id


@dataclass(frozen=True)
class Picture:
    """A picture of a group as it is shown; `number` counts from 1."""

    number: int
    pk: str  # in row-path form
    caption: str
    url: str
    image: str
    thumbnail: str
    decision: str | None
    suggested: bool
    score: float | None
    facts: Facts


@dataclass(frozen=True)
class Cell:
    """One fact of one picture: whether it differs from the first picture's."""

    text: str
    title: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Shown:
    """A group with its pictures, those shown of them, and where to go from it."""

    group: Group
    pictures: list[Picture]
    place: int  # in its tier, from 1

    @property
    def facts(self) -> list[tuple[str, list[Cell]]]:
        """The rows of the table of facts: those that are known of some picture."""
        return facts_table(self.pictures, self.group.tier)

    @property
    def kept(self) -> int:
        return sum(one.decision == "keep" for one in self.group.members)

    @property
    def marked(self) -> int:
        return sum(one.decision == "mark" for one in self.group.members)


@dataclass(frozen=True)
class Overview:
    """Everything about a collection's duplicates but the pictures."""

    scan: Scan | None
    groups: list[Summary]
    tallies: dict[str, Tally]
    steps: int

    def of(self, tier: str) -> list[Summary]:
        return [one for one in self.groups if one.tier == tier]


# Reading


@tells_errors
async def review(datasette: Datasette, request: Any) -> Response:
    """One group a page, or all of a tier; as JSON; what is marked as CSV."""
    place = await find_place(datasette, request)
    if request.url_vars.get("format") == "csv":
        return await _marked_csv(place)
    asked = _read_asked(place)
    overview = await ask_database(place, lambda conn: _overview(conn, place))
    if wants_json(request):
        return await _as_json(place, asked, overview)
    tier = _tier(asked, overview)
    context = {
        **_frame(place, asked, overview, tier),
        "may": await may_curate(place),
    }
    if overview.groups and asked.view == "all":
        context |= await _list(place, asked, overview, tier)
    elif overview.groups:
        context |= await _one(place, asked, overview, tier)
    return await page(place, "image_similarity_duplicates.html", context)


def _overview(conn: sqlite3.Connection, place: Place) -> Overview:
    groups = decisions.summaries(conn, place.collection)
    return Overview(
        scan=decisions.last_scan(conn, place.collection),
        groups=groups,
        tallies=decisions.tallies(groups),
        steps=decisions.steps(conn, place.collection),
    )


def _read_asked(place: Place) -> Asked:
    args = place.request.args
    choices = {"_tier": TIERS, "_view": ("one", "all"), "_state": ("open", "decided")}
    for name, values in choices.items():
        if args.get(name) and args[name] not in values:
            raise PageError(400, f"{name} must be one of {', '.join(values)}")
    most = place.datasette.setting("max_returned_rows")
    size = args.get("_size") or LISTED
    return Asked(
        tier=args.get("_tier") or None,
        group=whole_number(args.get("_group"), "_group") if args.get("_group") else None,
        view=args.get("_view") or "one",
        state=args.get("_state") or None,
        size=most if size == "max" else max(1, min(whole_number(size, "_size"), most)),
        after=whole_number(args.get("_next") or 0, "_next"),
    )


def whole_number(value: object, name: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise PageError(400, f"{name} must be a whole number")
    return number


def _tier(asked: Asked, overview: Overview) -> str:
    """The tier to show: that of the group that is asked for, the one asked for, the
    surest with open groups, the surest with any."""
    named = next((one.tier for one in overview.groups if one.id == asked.group), None)
    if named or asked.tier:
        return named or asked.tier or ""
    tallies = overview.tallies.values()
    waiting = [one.tier for one in tallies if one.open] + [
        one.tier for one in tallies if one.groups
    ]
    return waiting[0] if waiting else TIERS[0]


def page_url(place: Place, page: str = "duplicates", **parameters: object) -> str:
    """An address of this page with parameters of ours, in the collection that was named."""
    return _with_parameters(place, place.path(page), parameters)


def _table_url(place: Place, **parameters: object) -> str:
    """The table itself, narrowed by filters of ours."""
    return _with_parameters(place, place.table_url, parameters)


def _with_parameters(place: Place, path: str, parameters: dict[str, object]) -> str:
    pairs = [(f"_{name}", value) for name, value in parameters.items() if value is not None]
    pairs = [*place.named, *pairs]
    return path + (f"?{urlencode(pairs)}" if pairs else "")


def _frame(place: Place, asked: Asked, overview: Overview, tier: str) -> dict[str, Any]:
    """What is around the groups: tabs, counts, addresses."""
    view = "all" if asked.view == "all" else None
    return {
        "scan": overview.scan,
        "any_groups": bool(overview.groups),
        "tier": tier,
        "tally": overview.tallies[tier],
        "meaning": MEANING[tier][1],
        "tabs": [
            (MEANING[one][0], overview.tallies[one], page_url(place, tier=one, view=view))
            for one in TIERS
        ],
        "elsewhere": next(
            (
                (MEANING[one.tier][0], page_url(place, tier=one.tier, view=view))
                for one in overview.tallies.values()
                if one.open and one.tier != tier
            ),
            None,
        ),
        "view": asked.view,
        "state": asked.state,
        "one_url": page_url(place, tier=tier),
        "all_url": page_url(place, tier=tier, view="all"),
        "decide_url": place.url("duplicates/decide"),
        "accept_url": place.url("duplicates/accept"),
        "undo_url": place.url("duplicates/undo"),
        "steps": overview.steps,
        "marked": sum(one.marked for one in overview.tallies.values()),
        "marked_url": _table_url(place, image_decision="mark"),
        "json_url": page_url(place, "duplicates.json", tier=tier),
        "csv_url": page_url(place, "duplicates.csv"),
        "command": place.command("duplicates"),
        "files": place.collection.source != "blob",
        "megabytes": megabytes,
    }


async def _one(place: Place, asked: Asked, overview: Overview, tier: str) -> dict[str, Any]:
    """The group that is looked at, or none when all are decided."""
    groups = overview.of(tier)
    ids = [one.id for one in groups]
    gone = asked.group is not None and asked.group not in ids
    if asked.group is not None and not gone:
        now = asked.group
    else:
        now = next_open(groups, (asked.group or 0) - 1)
    again = {"again_url": page_url(place, tier=tier, group=ids[0]) if ids else None}
    if now is None:
        return {**again, "shown": None, "gone": gone}
    at = ids.index(now)
    ahead = next_open(groups, now)
    wanted = [now] if ahead in (None, now) else [now, ahead]
    shown = await _shown(place, wanted, overview, SHOWN)
    if not shown or shown[0].group.id != now:  # changed since the overview was read
        raise PageError(409, f"The group {now} has just changed: look again")

    def beside(step: int) -> str | None:
        there = 0 <= at + step < len(ids)
        return page_url(place, tier=tier, group=ids[at + step]) if there else None

    return {
        **again,
        "shown": shown[0],
        "gone": gone,
        "rows_url": _table_url(place, image_group=now),
        "previous_url": beside(-1),
        "next_url": beside(1),
        "preload": [one.image for group in shown[1:] for one in group.pictures[:6]],
    }


async def _list(
    place: Place, asked: Asked, overview: Overview, tier: str
) -> dict[str, Any]:
    """A page of all groups of a tier."""
    ids, following = _page_of(asked, overview.of(tier))
    here = {"tier": tier, "view": "all", "state": asked.state}
    return {
        "groups": await _shown(place, ids, overview, IN_LIST),
        "after": asked.after or None,
        "states": [
            (
                title,
                asked.state == state,
                page_url(place, tier=tier, view="all", state=state),
            )
            for title, state in (("All", None), ("Open", "open"), ("Decided", "decided"))
        ],
        "following_url": page_url(place, **here, next=following) if following else None,
        "group_url": lambda id: page_url(place, tier=tier, group=id),
    }


def _page_of(asked: Asked, groups: list[Summary]) -> tuple[list[int], int | None]:
    """The groups of a page of the list, and the last one's id where more follow."""
    if asked.group is not None:
        groups = [one for one in groups if one.id == asked.group]
    if asked.state:
        groups = [one for one in groups if one.open == (asked.state == "open")]
    ids = [one.id for one in groups if one.id > asked.after]
    here = ids[: asked.size]
    return here, here[-1] if len(ids) > len(here) else None


def next_open(groups: list[Summary], after: int) -> int | None:
    """The next group that waits, from the start again behind the last."""
    waiting = [one.id for one in groups if one.open]
    return next((id for id in waiting if id > after), waiting[0] if waiting else None)


async def _shown(
    place: Place, ids: list[int], overview: Overview, most: int | None
) -> list[Shown]:
    """Groups with up to so many of their pictures, in the order of `ids`."""
    caption = await caption_column(place)

    def read(conn: sqlite3.Connection) -> tuple[list[Group], dict[int, Facts], dict]:
        groups = decisions.read_groups(conn, place.collection, ids)
        items = [one.item for group in groups for one in group.members[:most]]
        captions = _captions(conn, place, items, caption) if caption else {}
        return groups, facts_of(conn, place.collection, items), captions

    groups, facts, captions = await ask_database(place, read)
    places = {}
    for tier in TIERS:
        places |= {one.id: n for n, one in enumerate(overview.of(tier), 1)}
    return [
        Shown(
            group=group,
            pictures=[
                _picture(place, number, one, group, facts[one.item], captions)
                for number, one in enumerate(group.members[:most], 1)
                if one.item in facts
            ],
            place=places.get(group.id, 0),
        )
        for group in groups
    ]


def _captions(
    conn: sqlite3.Connection, place: Place, items: list[int], column: str
) -> dict[int, object]:
    live = db.live_sql(place.collection, place.source, db.ITEMS_BY_ID)
    sql = f"select i.id, t.{db.quote(column)} {live}"
    return dict(conn.execute(sql, {"ids": json.dumps(items)}).fetchall())


def _picture(
    place: Place,
    number: int,
    member: Member,
    group: Group,
    facts: Facts,
    captions: dict[int, object],
) -> Picture:
    pk = place.row_path(member.pk)
    return Picture(
        number=number,
        pk=pk,
        caption=caption_text(captions.get(member.item), pk),
        url=f"{place.table_url}/{pk}",
        image=place.url(f"image/{pk}"),
        thumbnail=place.url(f"thumbnail/{pk}"),
        decision=member.decision,
        suggested=member is group.keeper,
        score=member.score,
        facts=facts,
    )


# Facts, in words


def megabytes(size: int) -> str:
    """Bytes as people read them: "31.0 KB", "1.24 MB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= unit:
            places = max(0, 2 - int(math.log10(size / unit)))
            return f"{size / unit:,.{places}f} {name}"
    return f"{size} bytes"


def facts_table(pictures: list[Picture], tier: str) -> list[tuple[str, list[Cell]]]:
    """The facts of pictures beside each other: (what, a cell a picture).

    A cell differs when it is not as the first picture's, the suggested keeper if any.
    """
    facts = [one.facts for one in pictures]

    def moment(text: str | None) -> str:
        return (text or "").replace("T", " ").removesuffix("Z")

    table: list[tuple[str, list[Cell]]] = [
        ("Resolution", [Cell(f"{one.width} × {one.height}") for one in facts]),
        ("Size", [Cell(megabytes(one.bytes), f"{one.bytes:,} bytes") for one in facts]),
        ("Format", [Cell(one.format or "") for one in facts]),
        ("Taken", [Cell(moment(one.taken_at)) for one in facts]),
        ("File changed", [Cell(moment(one.changed_at), "UTC") for one in facts]),
        ("Path", [Cell(one.path or "") for one in facts]),
    ]
    if tier != "identical":
        scores = [one.score for one in pictures]
        table.append(
            ("Cosine", [Cell("" if s is None else f"{s:.3f}", MEDOID) for s in scores])
        )
    return [
        (what, [_compared(cell, cells[0]) for cell in cells])
        for what, cells in table
        if any(cell.text for cell in cells)
    ]


MEDOID = "Cosine similarity to the group's medoid, the picture in its middle"


def _compared(cell: Cell, first: Cell) -> Cell:
    same = (cell.text, cell.title) == (first.text, first.title)
    return Cell(cell.text or "unknown", cell.title, not same)


# JSON and CSV


async def _as_json(place: Place, asked: Asked, overview: Overview) -> Response:
    groups = [one for one in overview.groups if asked.tier in (None, one.tier)]
    ids, following = _page_of(asked, groups)
    if asked.group is not None and not ids:
        raise PageError(404, f"There is no group {asked.group}")
    shown = await _shown(place, ids, overview, None)
    next_url = None
    if following:
        here = {"tier": asked.tier, "state": asked.state, "size": asked.size}
        next_url = page_url(place, "duplicates.json", **here, next=following)
        next_url = place.datasette.absolute_url(place.request, next_url)
    scan = overview.scan
    return json_answer(
        place,
        {
            "database": place.database,
            "table": place.table,
            "collection": place.collection.name,
            "scanned_at": scan and scan.made_at,
            "scanned": scan and scan.pictures,
            "flat": scan and scan.flat,
            "thresholds": scan and scan.thresholds,
            "tiers": {tier: asdict(one) for tier, one in overview.tallies.items()},
            "groups": [_group_as_json(place, one) for one in shown],
            "next": str(following) if following else None,
            "next_url": next_url,
        },
    )


def _group_as_json(place: Place, shown: Shown) -> dict[str, Any]:
    group = shown.group
    return {
        "id": group.id,
        "tier": group.tier,
        "state": "open" if group.open else "decided",
        "keeper": place.row_path(group.keeper.pk) if group.keeper else None,
        "reason": group.reason,
        "version": group.version,
        "pictures": [
            {
                "pk": one.pk,
                "decision": one.decision,
                "score": one.score,
                "caption": one.caption,
                **{name: getattr(one.facts, name) for name in FACTS},
                "thumbnail": one.thumbnail,
                "image": one.image,
            }
            for one in shown.pictures
        ],
    }


FACTS = (
    *("width", "height", "bytes", "format", "taken_at", "changed_at"),
    *("path", "sha256"),
)


async def _marked_csv(place: Place) -> Response:
    """The rows of marked pictures, all of them."""
    columns = db.plain_columns(place.collection, place.source)

    def read(conn: sqlite3.Connection) -> list[list[object]]:
        found = decisions.marked_rows(conn, place.collection, columns)
        return [[place.row_path(pk), *values] for pk, *values in found]

    rows = await ask_database(place, read)
    return csv_answer(place, "marked", ["pk", *columns], rows)
