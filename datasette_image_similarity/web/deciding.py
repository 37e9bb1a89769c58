"""Decisions about duplicates, as forms and JSON clients send them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils import urlsafe_components
from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..explore import decisions
from ..explore.decisions import Group, GroupChanged, Tally
from ..explore.duplicates import TIERS
from .answers import tells_errors, wants_json
from .curate import actor_id, change, require_curator
from .duplicates import next_open, page_url, whole_number
from .forms import read_fields
from .question import PageError, Place, find_place

if TYPE_CHECKING:
    from datasette.app import Datasette


@dataclass(frozen=True)
class Done:
    """What a POST did, in words and by key (None: taken back), and the group to look at
    next (None: all of the tier are decided)."""

    said: str
    changed: dict[db.Key, str | None]
    tier: str
    group: int | None
    tallies: dict[str, Tally]


@tells_errors
async def decide(datasette: Datasette, request: Any) -> Response:
    """A POST: what becomes of one group, of a whole tier, or of the newest step."""
    place = await find_place(datasette, request)
    await require_curator(place)  # before anything of theirs is read
    fields = await read_fields(request)
    write = {"decide": _decide_group, "accept": _accept, "undo": _undo}[
        request.url_vars["change"]
    ]
    try:
        done: Done = await change(place, lambda conn: write(conn, place, fields))
    except GroupChanged as error:
        raise PageError(409, str(error)) from None
    if wants_json(request):
        return Response.json(
            {
                "ok": True,
                "message": done.said,
                "changed": {place.row_path(pk): new for pk, new in done.changed.items()},
                "next_group": done.group,
                "tiers": {tier: asdict(one) for tier, one in done.tallies.items()},
            }
        )
    datasette.add_message(request, done.said, datasette.INFO)
    return Response.redirect(_back(place, fields, done))


def _decide_group(conn: sqlite3.Connection, place: Place, fields: dict[str, Any]) -> Done:
    id = whole_number(fields.get("group"), "group")
    group = decisions.read_group(conn, place.collection, id)
    if fields.get("version", group.version) != group.version:
        raise GroupChanged("Other pictures are in this group by now: look again")
    action, actor = str(fields.get("action")), actor_id(place)
    pk = _key(conn, place, fields)
    changed: dict[db.Key, str | None] = {}
    if action == "split":
        if pk is None:
            raise PageError(400, "Say which picture: pk is missing")
        decisions.split(conn, place.collection, group, pk, actor)
        changed[pk] = "apart"
    elif action in decisions.ACTIONS:
        changed |= decisions.decide(conn, place.collection, group, action, pk, actor)
    else:
        known = ", ".join((*decisions.ACTIONS, "split"))
        raise PageError(400, f"action must be one of {known}")
    groups = decisions.summaries(conn, place.collection)
    here = [one for one in groups if one.tier == group.tier]
    stay = action in ("mark", "unmark", "split") and id in [one.id for one in here]
    return Done(
        said=_in_words(group, action, pk, changed),
        changed=changed,
        tier=group.tier,
        group=id if stay else next_open(here, id),
        tallies=decisions.tallies(groups),
    )


def _key(conn: sqlite3.Connection, place: Place, fields: dict[str, Any]) -> db.Key | None:
    """The key of the row in the field `pk`. Raises PageError 404 without such a row."""
    pk = fields.get("pk")
    if pk is None:
        return None
    key = place.source.find(conn, urlsafe_components(str(pk)))
    if key is None:
        raise PageError(404, f"There is no row {pk} in {place.table}")
    return key


def _in_words(
    group: Group, action: str, pk: db.Key | None, changed: dict[db.Key, str | None]
) -> str:
    numbers = {one.pk: number for number, one in enumerate(group.members, 1)}
    if action == "split":
        return f"Split picture {numbers.get(pk)} off: it is no duplicate of the others."
    if not changed:
        return "Nothing to change: it has been decided so already."
    if action == "skip":
        return "Skipped: everything stays as it is."
    if action in ("mark", "unmark"):
        done = "Marked" if action == "mark" else "Kept"
        return f"{done} picture {numbers.get(pk)}."
    kept = numbers.get(pk, 1) if action == "keep" else 1
    others = len(group.members) - 1
    return f"Kept picture {kept}, marked {count(others, 'other')}."


def _accept(conn: sqlite3.Connection, place: Place, fields: dict[str, Any]) -> Done:
    tier = fields.get("tier")
    if tier not in TIERS:
        raise PageError(400, f"tier must be one of {', '.join(TIERS)}")
    before = decisions.tallies(decisions.summaries(conn, place.collection))[tier]
    expected = fields.get("pictures", before.would_mark)
    if whole_number(expected, "pictures") != before.would_mark:
        raise PageError(
            409,
            f"By now this would mark {count(before.would_mark, 'picture')}, not "
            f"{expected}: look again",
        )
    changed = decisions.accept_tier(conn, place.collection, tier, actor_id(place))
    groups = decisions.summaries(conn, place.collection)
    marked = sum(new == "mark" for new in changed.values())
    return Done(
        said=f"Accepted {count(before.acceptable, 'suggestion')}: "
        f"{count(marked, 'picture')} marked.",
        changed=dict(changed),
        tier=tier,
        group=next_open([one for one in groups if one.tier == tier], 0),
        tallies=decisions.tallies(groups),
    )


def _undo(conn: sqlite3.Connection, place: Place, fields: dict[str, Any]) -> Done:
    taken = decisions.undo(conn, place.collection)
    groups = decisions.summaries(conn, place.collection)
    by_id = {one.id: one for one in groups}
    found = by_id.get(decisions.group_with(conn, place.collection, taken) or 0)
    tier = found.tier if found else fields.get("tier")
    return Done(
        said=f"Took back what was decided of {count(len(taken), 'picture')}."
        if taken
        else "There is nothing to take back.",
        changed=dict.fromkeys(taken),
        tier=tier if tier in TIERS else TIERS[0],
        group=found.id if found else None,
        tallies=decisions.tallies(groups),
    )


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _back(place: Place, fields: dict[str, Any], done: Done) -> str:
    """Where a form leads: to the next group, or the same page of the list."""
    if fields.get("view") != "all":
        return page_url(place, tier=done.tier, group=done.group)
    known = {name: fields.get(name) or None for name in ("state", "next")}
    return page_url(place, tier=done.tier, view="all", **known) + _anchor(fields)


def _anchor(fields: dict[str, Any]) -> str:
    group = str(fields.get("group", ""))
    return f"#group-{group}" if group.isdecimal() else ""
