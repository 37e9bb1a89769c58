"""One run of `embed`: what there is to do, and how each batch is stored.

A `Run` lists the source, opens or makes the collection, compares what it lists with what
is stored (size and time first, hash next), writes the batches that `pipeline.py` makes,
a transaction each, and forgets what is gone. A run that is cut off is resumed by the
next: it finds what was stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.utils.sqlite import sqlite3

from . import database as db
from . import index, moves, siblings, sources, trust
from .choosing import Choice, RunSettings, Skipped
from .contents import lost_with
from .encoders import Encoder, EncoderSpec
from .errors import CollectionError, Stopped
from .images import LOCAL_FILES, Limits
from .moves import Spot
from .pipeline import Job, Outcome
from .plan import AT_ONCE, Item, Queue, Stored, chunks, folder, folders_of, untouched
from .roots import BucketRoot, Root, WebRoot, contains, place
from .rows import Given, finish_given
from .stores import Space
from .stores.ids import new_source
from .stores.indexing import note_store_index
from .stores.items import vector_of_bytes
from .stores.opening import stores_of
from .stores.places import clear_places, places_of
from .stores.sending import send_waiting
from .written import EMBEDDED, written_rows

if TYPE_CHECKING:
    from .encoders.transform import TransformedEncoder
    from .learning.sample import Sample

T = TypeVar("T")
DEFAULT_NAME = "default"
REMOTE_READERS = 16  # threads that read what is not on this computer: each mostly waits
PLACE_COLUMNS = ("latitude", "longitude")
REMOTE_PAUSE = 60  # seconds between two looks at a bucket, which cost money, or the web


@dataclass
class Summary:
    """What a run did. `missing` files keep their vectors until a run with `prune`, which
    keeps the `kept_rows` in which people have written something. `skipped` were not
    looked at; `notes` are lines for people."""

    embedded: int = 0
    reused: int = 0  # identical bytes, or renamed: the vector was there
    unchanged: int = 0
    failed: int = 0
    removed: int = 0
    missing: int = 0
    kept_rows: int = 0
    seconds: float = 0.0
    stopped: bool = False
    wants_index: bool = False  # there is none, and so many vectors that it would help
    failures: list[tuple[sources.Picture, str]] = field(default_factory=list)
    new_roots: list[str] = field(default_factory=list)  # read for the first time
    left: list[str] = field(default_factory=list)  # what became of the collection replaced
    skipped: Skipped = field(default_factory=Skipped)
    pause: float = 2  # seconds after which it is worth looking for changes
    cache_problem: str | None = None  # why downloads could not be kept
    notes: list[str] = field(default_factory=list)  # on the rows of a CSV or a program

    @property
    def is_there(self) -> int:
        """How many of the pictures that were listed are embedded."""
        return self.embedded + self.reused + self.unchanged

    def as_json(self) -> dict[str, Any]:
        """Counts, and failures as objects with `path` and `reason`."""
        others = (
            "failures",
            "new_roots",
            "left",
            "wants_index",
            "pause",
            "cache_problem",
        )
        counts = {name: value for name, value in vars(self).items() if name not in others}
        failures = [{"path": p.label, "reason": reason} for p, reason in self.failures]
        counts["skipped"] = dict(self.skipped.most_common())
        return {**counts, "seconds": round(self.seconds, 1), "failures": failures}

    @property
    def all_failed(self) -> bool:
        """Whether there were pictures, and no vector came of any."""
        return self.failed > 0 and not (self.embedded or self.reused or self.unchanged)


@dataclass(frozen=True)
class How:
    """How pictures are put through the pipeline: see `embed_pictures()`."""

    limits: Limits
    thumbnail: int | None
    batch_size: int
    workers: int | None
    stop: Callable[[], bool]
    engine: Callable[..., Iterator[list[Outcome]]]  # called as `embed_pictures()`


class Run:
    """One run of `embed()`: what there is to do, and how each batch is stored."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        *,
        database: Path,
        vouched: trust.Vouched,
        table: str,
        mode: tuple[str, str],
        before: db.Collection | None,
        label_from_folder: bool,
        reader: sources.Reader,
        places: bool | None,
        settings: RunSettings,
        choice: Choice,
        given: Given | None = None,
    ) -> None:
        """`places` is whether rows are told where a picture was taken; None as before."""
        self.conn = conn
        self.settings = settings
        self.choice = choice
        self.given = given  # rows of a CSV or a program, which the table has by now
        self.reader = reader
        self.database = database
        self._vouched = vouched
        self.table_name = table
        self.source, self.column = mode
        self.before = before
        self.label_from_folder = label_from_folder
        notes = [*choice.notes, *(given.notes if given else ())]
        self.summary = Summary(notes=notes, skipped=self.choice.skipped)
        self.done = 0
        self.movable: dict[str, list[int]] = {}  # hash → items whose file is gone
        self._gone: set[int] = set()  # items whose file is gone
        self._elsewhere: set[int] = set()  # the same, of folders that were not listed
        self._unmet: dict[int, moves.Known] = {}  # all of these
        self._failed: set[tuple] = set()  # (pk, root id, path)
        self._listed: set[str] = set()  # folders that were listed as a whole
        self._closed: set[str] = set()  # places inside them that were not
        self._told: set[str] = set()  # all folders that runs were told of, and these
        self._named: list[Root] = []  # the folders of files that were named
        self._top: Root  # what paths in a column are relative to
        self._spots: dict[Root, Spot] = {}  # where the files of a folder are recorded
        self._roots: set[Root] = set()  # folders of pictures that are there
        self._root_ids: dict[Root, int] = {}
        self._stored: Stored | None = None  # what others store is looked up in, if at all
        self._queue: Queue
        self._version = db.data_version(conn)
        self._places_asked = places
        self._places = self._tells_places()
        self.total = 0  # of what there is to do
        self.learning = ""  # what is being learned, for people to know
        self.collection: db.Collection | None = None  # until `open()`
        self.table: db.SourceTable

    def list(
        self,
        files: list[Path | BucketRoot],
        listed: Iterator[sources.Picture],
        root: Root | None,
        where: str | None,
    ) -> Iterator[sources.Picture]:
        """What the source holds, one by one; `listed` is what files that were named hold.
        Raises CollectionError."""
        if self.source == "folder":
            if where:
                raise CollectionError("--where chooses rows of a table, not files")
            return self._recorded(self._list_folders(files, listed))
        table = db.source_table(self.conn, self.table_name)
        self.column = sources.require_column(table, self.column)
        self.table = table
        if self.source == "blob":
            return sources.blob_pictures(self.conn, table, self.column, where)
        if root is None:
            beside = Path(os.path.abspath(self.database)).parent
            root = next(iter(self._vouched_roots()), beside)
            self._check([root], listing=False)
        self._note_pause([root])
        self._top = root
        if isinstance(root, Path) and not moves.is_there(root):
            why = "is empty: connect its drive, or" if root.is_dir() else "does not exist:"
            raise CollectionError(f"The root folder {root} {why} name one by --root")
        return sources.column_pictures(
            self.conn, table, self.column, root, where, self.reader.buckets
        )

    def _list_folders(
        self, named: list[Path | BucketRoot], listed: Iterator[sources.Picture]
    ) -> Iterator[sources.Picture]:
        """The pictures in folders and buckets: those named, or embedded before."""
        roots = named or [
            known
            for known in self._vouched_roots()
            if (known.is_dir() if isinstance(known, Path) else known != WebRoot())
        ]
        if not roots:
            raise CollectionError(
                "The folders embedded before are not there. Name the folder that has the "
                "pictures now, or connect the drive"
            )
        files = [root for root in roots if isinstance(root, Path)]
        buckets = [root for root in roots if isinstance(root, BucketRoot)]
        self._named = [_folder_of(file) for file in files] + buckets
        whole = [os.path.abspath(file) for file in files if file.is_dir()] + buckets
        self._listed = {place(one, "").rstrip("/") for one in whole}
        self._note_pause(roots)
        for root in self._named:
            self._spot(root)
        if named:
            return listed
        self._check(roots, listing=True)
        return sources.listed(roots, self.choice, self.reader.buckets)

    def _recorded(self, pictures: Iterator[sources.Picture]) -> Iterator[sources.Picture]:
        """Pictures of folders as they are recorded: see `moves.recorded_at()`."""
        for picture in pictures:
            spot = self._spot(picture.root)
            if picture.file is not None:
                self._roots.add(picture.root)
            yield picture._replace(root=spot.root, path=spot.prefix + picture.path)

    def _spot(self, root: Root) -> Spot:
        if root not in self._spots:  # the first of all; later what a link leads to
            if root not in self._named:
                self._named.append(root)
                self._listed.add(place(root, "").rstrip("/"))
            known = moves.known_spots(self.conn, self.table_name)
            known += self._spots.values()
            self._spots |= moves.recorded_at(self._named, known, self._is_taken)
        return self._spots[root]

    def _is_taken(self, prefix: str) -> bool:
        return moves.is_taken(self.conn, self.table_name, prefix)

    def _check(self, roots: Iterable[Root], *, listing: bool) -> None:
        """Raise CollectionError where a bucket that was embedded before is not to be had:
        those that were named have been checked, before anything was written."""
        for root in roots:
            if isinstance(root, BucketRoot):
                self.reader.buckets.check(root, listing=listing)

    def _note_pause(self, roots: Iterable[Root]) -> None:
        if not all(isinstance(root, Path) for root in roots):
            self.summary.pause = REMOTE_PAUSE

    def _vouched_roots(self) -> list[Root]:
        """Folders and buckets that runs before this one were told of, oldest first.

        A database may come from a stranger: a folder that is merely recorded in it is not
        read. Raises CollectionError when there are such folders and no others.
        """
        before = moves.spots(self.conn, self.before) if self.before else []
        recorded = list(map(str, before))
        beside = Path(os.path.abspath(self.database)).parent  # the database's own folder
        trusted = (*trust.trusted_roots(self.database), beside)
        vouched = [one for one in trusted if str(one) in recorded]
        if recorded and not vouched:
            raise CollectionError(
                f"{self.database} records the folder {next(iter(recorded))}, but you have "
                "not embedded it into this file on this computer: name the folder, or "
                "--root for a column of paths, or --url-column for one of addresses"
            )
        return vouched

    def open(
        self,
        encoder: Encoder | None,
        *,
        name: str | None,
        spec: EncoderSpec,
        metric: str | None,
        thumbnails: bool,
        store: str,
    ) -> None:
        """Find the collection, or make it, and the table of a folder with it.

        `encoder` is that of `spec`; None where the collection is there, most likely. One
        of another encoder or metric is replaced: that this is wanted has been checked
        before. `store` is where the vectors go if not into this file. Raises
        CollectionError when another run was quicker to make one that is not the same,
        StoreError when the store cannot be used.
        """
        conn = self.conn
        places: dict[str, str] = {}  # of vectors that are replaced
        if store:
            dimensions = encoder.dimensions if encoder else self.before.dimensions
            metric = metric or (self.before.metric if self.before else "cosine")
            space = Space(spec.fingerprint, dimensions, metric)
            index = stores_of(conn).open_url(store, space)
            index.ensure()
        with db.transaction(conn):
            if self.source == "folder":
                self._open_folder_table()
            self.table = db.source_table(conn, self.table_name)
            db.migrate(conn)
            before = db.collection_or_none(conn, self.table_name, name)
            if (
                before
                and (before.source, before.column) == (self.source, self.column)
                and before.fingerprint == spec.fingerprint
                and metric in (None, before.metric)
                and store == before.store
            ):
                self.collection = before
                self._note_places()
                self._keep_settings()
                return
            if before != self.before:
                raise self._overtaken()
            if before:
                metric = metric or before.metric
                places = places_of(conn, before)
                self.summary.left = lost_with(conn, before)
                db.set_aside(conn, before)
            self.collection = db.create_collection(
                conn,
                name=name or (before.name if before else DEFAULT_NAME),
                table=self.table.name,
                source=self.source,
                column=self.column,
                encoder=spec.to_json(),
                fingerprint=spec.fingerprint,
                dimensions=encoder.dimensions if encoder else 0,
                metric=metric or "cosine",
                thumbnails=thumbnails,
                store=store,
                store_id=new_source(self.database, self.table.name) if store else "",
            )
            if store:
                note_store_index(conn, self.collection, index)
            transform = getattr(encoder, "transform", None)
            if transform is not None:
                db.put_transform(conn, self.collection, transform.rows())
            if before:
                db.hand_over(conn, before, self.collection)
                db.drop_collection(conn, before)
            self._note_places()
            self._keep_settings()
        if before:
            self.summary.left += clear_places(conn, before, places)

    def _tells_places(self) -> bool:
        """Whether places are put into the table, which all of its collections share."""
        if self._places_asked is not None:
            return self._places_asked
        there = db.collections(self.conn, self.table_name)
        return all(db.run_setting(self.conn, one, "places") is not False for one in there)

    def _note_places(self) -> None:
        """Keep what was asked about places for the next run, and take out those that are
        not wanted any more. Call inside a transaction."""
        for one in db.collections(self.conn, self.table.name):
            turned_off = db.run_setting(self.conn, one, "places") is not False
            if self._places_asked is not None or not self._places:
                db.note_run_setting(self.conn, one, "places", self._places)
            if self._places_asked is False and turned_off and one.source == "folder":
                for name in {*PLACE_COLUMNS} & {*self.table.columns}:
                    self.conn.execute(
                        f"update {db.quote(self.table.name)} set {name} = null where id in "
                        "(select pk from _image_similarity_items where collection_id = ?)",
                        (one.id,),
                    )

    def _keep_settings(self) -> None:
        """Note what the next run should know, and record known folders inside those that
        were named with them: `moves.nest()`. Call inside a transaction."""
        if self.source == "folder":
            before = list(map(str, moves.spots(self.conn, self.collection)))
            moves.nest(self.conn, self.table, self._spots)
            self._keep_folders(before)

    def _keep_folders(self, before: Iterable[str] = ()) -> None:
        folders = dict.fromkeys([*before, *self.settings.folders, *map(str, self._named)])
        self.settings = self.settings.told(folders=self._without_inner(folders))
        self._put_settings()

    def _put_settings(self) -> None:
        kept = vars(RunSettings.of(partial(db.run_setting, self.conn, self.collection)))
        for name, setting in vars(self.settings).items():
            if setting != kept[name]:
                db.note_run_setting(self.conn, self.collection, name, setting)

    def _without_inner(self, folders: Iterable[str]) -> tuple[str, ...]:
        """Folders without those that are listed with another one around them. One that is
        not there stays: its drive may be away."""
        folders = list(folders)

        def is_listed_with(outer: str, one: str) -> bool:
            below = place(one, "").removeprefix(place(outer, ""))
            return (
                outer != one
                and contains(outer, one)
                and not self.choice.excludes_inside(f"{below}x")
            )

        return tuple(
            one
            for one in folders
            if not any(is_listed_with(outer, one) for outer in folders)
            or not moves.is_there(folder(one))
        )

    def _require_ours(self) -> None:
        """Raise CollectionError when another run has removed or replaced the collection.

        Call inside a transaction. Its id may have been given out again.
        """
        if self.collection not in db.collections(self.conn, self.collection.table):
            raise self._overtaken()

    def _overtaken(self) -> CollectionError:
        return CollectionError(
            f"Another run has changed the embeddings of {self.table.name!r} meanwhile: "
            "run this again"
        )

    def _open_folder_table(self) -> None:
        if not db.table_exists(self.conn, self.table_name):
            db.create_folder_table(self.conn, self.table_name)
        table = db.source_table(self.conn, self.table_name)
        if table.pks != ("id",) or "path" not in table.columns:
            raise CollectionError(
                f"There is a table {table.name!r} already, which is not one of files "
                "(with the columns id and path): choose another with --table, or embed "
                "it with --path-column or --blob-column"
            )
        if self.label_from_folder:
            db.add_column(self.conn, table.name, "label", "text")

    def plan(
        self,
        pictures: Iterable[sources.Picture],
        skip: Iterable[sources.Picture],
        force: bool,
        limit: int | None,
    ) -> Queue:
        """The pictures that have to be looked at: before `open()`, all of them."""
        seen = set(map(_as_listed, skip))
        stored = None
        if self.collection is not None:
            self._drop_rowless()
            if self.source == "path":
                self._move_column()
            stored = Stored(self.conn, self.collection)
            self._stored = None if force else stored
        self._queue = queue = Queue(self.conn)
        # Known failures last, or they would use up the limit run after run.
        failed = set() if limit is None or stored is None else self._known_failures()
        roots = stored.roots if stored else {}
        for chunk in chunks(pictures):
            jobs = []
            items = stored.items(chunk) if stored else [None] * len(chunk)
            for picture, item in zip(chunk, items, strict=True):
                job = self._job(picture, item, roots, seen, force)
                if job is not None:
                    jobs.append((job, (picture.pk, picture.path) in failed))
            queue.add(jobs)
            root = chunk[0].root
            if (
                self.source != "folder"
                and root is not None
                and any(one.problem is None for one in chunk)
            ):
                self._roots.add(root)
            failing = (place(p.root, p.path) for p in chunk if p.problem and p.path)
            self._closed.update(one.removesuffix("/.") for one in failing)
        if stored and self.source == "folder":
            self._find_moved(stored, seen, force)
            self._find_gone(stored)
            self._match_copies()
        if limit is not None:
            queue.cut(limit)
        self.total = len(queue)
        return queue

    def _find_moved(self, stored: Stored, seen: set[sources.Picture], force: bool) -> None:
        """Have the rows of libraries that have moved stay: see `moves.find_move()`."""
        self._listed = {one for one in self._listed if moves.is_there(folder(one))}
        kept = moves.away(self.conn, self.collection)
        for old in moves.spots(self.conn, self.collection):
            if str(old) not in kept:
                continue
            move = self._queue.has_new() and moves.find_move(
                self.conn, self.collection, self._queue, old, self._read
            )
            if move and move.is_sure:
                self._move(move, stored, seen, force)
                self._note_move(old, move.new, move.found)
                continue
            some = (
                f" ({move.found:,} of them are in {move.new}, too few to take that for the "
                "same folder)"
                if move
                else ""
            )
            those = _pictures(kept[str(old)], "is kept", "are kept")
            self.summary.notes.append(f"{old} is not there: its {those}{some}")

    def _move(
        self,
        move: moves.Move,
        stored: Stored,
        seen: set[sources.Picture],
        force: bool,
    ) -> None:
        """Record the files of a folder where they are now, and plan again what is there."""
        folders = [one for one in self.settings.folders if one != str(move.old)]
        self.settings = self.settings.told(folders=self._without_inner(folders))
        known = [
            spot
            for spot in moves.known_spots(self.conn, self.table_name)
            if spot != move.old
        ]
        new = moves.spot_of_moved(move, self._spots, known, self._is_taken)
        to = move.new
        if new is not None:
            listed, spot = new
            self._queue.record_at(self._spots[listed], spot)
            self._spots[listed] = spot
            to = moves.inside(spot, move.new)
        with db.transaction(self.conn):
            self._require_ours()
            moves.record_at(self.conn, self.table, move.old, to)
            self._put_settings()
        self._version = db.data_version(self.conn)
        stored.roots = db.roots(self.conn, self.collection)
        for some in _some(self._queue.new()):
            numbers, pictures = zip(*some, strict=True)
            items = stored.items(list(pictures))
            self._queue.settle(
                (number, self._job(picture, item, stored.roots, seen, force))
                for number, picture, item in zip(numbers, pictures, items, strict=True)
                if item is not None
            )

    def _move_column(self) -> None:
        """Have the rows of a column of paths stay where their root has moved."""
        gone = moves.away(self.conn, self.collection)
        for old in moves.spots(self.conn, self.collection):
            if str(old) not in gone or old.root == self._top:
                continue
            find = sources.finder(self._top, self.reader.buckets)
            if not moves.column_moved(
                self.conn, self.collection, old.root, find, self._read
            ):
                continue
            with db.transaction(self.conn):
                self._require_ours()
                moves.record_at(self.conn, self.table, old, Spot(self._top))
            self._note_move(old, self._top, gone[str(old)])

    def _note_move(self, old: Spot, new: Spot | Root, count: int) -> None:
        those = _pictures(count, "keeps its row", "keep their rows")
        self.summary.notes.append(f"{old} has moved to {new}: {those}")

    def _read(self, file: str) -> bytes:
        return self.reader.read(file, LOCAL_FILES.max_bytes)

    def _find_gone(self, stored: Stored) -> None:
        """Note what was not met: in folders that were listed, but for those that are
        closed, it is gone. A new file may have its bytes, and then its row. So may one of
        another folder, if that is there and the file is not."""
        spots = moves.spots(self.conn, self.collection)
        self._told = {place(*one).rstrip("/") for one in spots} | self._listed
        there: dict[str | None, bool] = {None: False}
        new_sizes = self._queue.new_sizes()
        for item, at in stored.unmet():
            if not self._closed.isdisjoint(folders_of(at)):
                continue
            listed = self._told_around(at)
            if listed in self._listed:
                self._gone.add(item.id)
            elif item.size in new_sizes:
                if listed not in there:
                    root = folder(listed)
                    there[listed] = isinstance(root, Path) and moves.is_there(root)
                if not there[listed] or os.path.lexists(at):
                    continue
                self._elsewhere.add(item.id)
            else:
                continue
            self._unmet[item.id] = moves.Known(
                item.id, item.sha256, item.size, item.mtime_ns, at
            )

    def _told_around(self, at: str) -> str | None:
        """The innermost folder around a file that this run or one before was told of."""
        return next((one for one in folders_of(at) if one in self._told), None)

    def _match_copies(self) -> None:
        """Settle which new file is which of those that are gone: by its bytes alone where
        no other has them, else by `moves.pair_copies()`."""
        known = self._unmet
        if not known:
            return
        sizes = {one.size for one in known.values()}
        new = [
            moves.New(number, picture)
            for number, picture in self._queue.new()
            if picture.size in sizes
        ]
        for other, one in list(moves.pair_copies(list(known.values()), new, self._read)):
            job = Job(other.picture, one.item, one.sha256)
            self._queue.settle([(other.number, job)])
            del known[one.item]
        for one in known.values():
            self.movable.setdefault(one.sha256, []).append(one.item)

    def jobs(self) -> Iterator[Job]:
        """What was planned, but for what another run does meanwhile.

        Two runs would go through the same pictures in the same order: the one that finds
        some stored goes on at another place, drawn at random, and so they share the work.
        """
        while jobs := self._queue.take():
            if self._others_wrote():
                jobs = self._not_done(jobs)
            yield from jobs

    def _others_wrote(self) -> bool:
        """Whether what was planned may be done, by another run."""
        return self._stored is not None and db.data_version(self.conn) != self._version

    def _not_done(self, jobs: list[Job]) -> list[Job]:
        """Those of these jobs that are still to be done, as they are now."""
        items = self._stored.find_all(job.picture for job in jobs)
        left = []
        for job, item in zip(jobs, items, strict=True):
            now: Job | None = job
            if item is not None and (item.id, item.sha256) != (job.item, job.sha256):
                now = self._job(job.picture, item, self._stored.roots, set(), False)
            if now is not None:
                left.append(now)
        self.done += len(jobs) - len(left)
        if len(left) < len(jobs):
            self._queue.jump()
        return left

    def _is_done(self, outcome: Outcome) -> bool:
        """Whether another run has stored the very same meanwhile."""
        picture = outcome.picture
        item = self._stored.find_all([picture])[0]
        facts = (outcome.sha256, picture.path, picture.size, picture.mtime_ns)
        return item is not None and facts == (
            item.sha256,
            item.path,
            item.size,
            item.mtime_ns,
        )

    def _job(
        self,
        picture: sources.Picture,
        item: Item | None,
        roots: Mapping[int, str],
        skip: set[sources.Picture],
        force: bool,
    ) -> Job | None:
        """What there is to do for one picture, if anything."""
        root = None if item is None else roots.get(item.root)
        if root != str(picture.root) and item is not None and self.source == "folder":
            # It is known from a folder around this one, or from inside it.
            picture = picture._replace(root=folder(root), path=item.path)
        if picture in skip:
            self._note_failure(picture)
        elif item is None:
            return Job(picture)
        elif not force and str(picture.root) == root and untouched(picture, item):
            self.summary.unchanged += 1
        else:
            return Job(picture, item.id, None if force else item.sha256)
        return None

    def _known_failures(self) -> set[tuple]:
        sql = "select pk, path from _image_similarity_failures where collection_id = ?"
        return {tuple(row) for row in self.conn.execute(sql, (self.collection.id,))}

    def work(
        self,
        jobs: Iterator[Job],
        encoder: Encoder | None,
        how: How,
        *,
        force: bool,
        report: Callable[[int, int, int], None],
    ) -> None:
        """Embed the pictures and store them batch by batch, or note why not.

        `report(done, total, failed)` is called at the start and after each batch.
        """
        report(self.done, self.total, self.summary.failed)
        if not self.total:
            return
        stored_vector = (lambda _: None) if force else self.stored_vector
        metric = self.collection.metric
        for batch in self._embedded(jobs, encoder, how, metric, stored_vector):
            self.write(batch)
            report(self.done, self.total, self.summary.failed)
        self.summary.stopped = how.stop() and self.done < self.total

    def learn(
        self,
        jobs: Iterator[Job],
        encoder: Encoder,
        sample: Sample,
        how: How,
        *,
        dims: int,
        metric: str,
        report: Callable[[int, int, int], None],
    ) -> TransformedEncoder:
        """Embed pictures into `sample` until they are enough to learn PCA to `dims` from.

        Nothing is stored yet: `open()` and `write_sample()` come next. Raises
        CollectionError when there are too few, Stopped.
        """
        from .learning.pca import check_dims
        from .learning.sample import pictures_wanted

        check_dims(dims, encoder.dimensions, self.total)
        wanted = pictures_wanted(encoder.dimensions)
        report(0, self.total, 0)
        # Some may fail: then more are taken.
        while some := list(islice(jobs, wanted - sample.usable)):
            for batch in self._embedded(some, encoder, how, metric, sample.vector):
                sample.add(batch)
                report(sample.seen, self.total, sample.failed)
            if how.stop():
                raise Stopped
        self.learning = f", learning {dims:,} dimensions from {sample.usable:,} pictures"
        report(sample.seen, self.total, sample.failed)
        about = {"of_pictures": self.total}
        learned = sample.learn(encoder, dims, metric, about, how.stop)
        self.learning = ""
        return learned

    def write_sample(self, sample: Sample, encoder: TransformedEncoder, how: How) -> None:
        """Store the pictures of which `encoder` was learned."""
        step, metric = encoder.transform.steps[-1], self.collection.metric
        for batch in sample.batches(step, metric, how.batch_size):
            self.write(batch)

    def _embedded(
        self,
        jobs: Iterable[Job],
        encoder: Encoder | None,
        how: How,
        metric: str,
        stored_vector: Callable[[str], bytes | None],
    ) -> Iterator[list[Outcome]]:
        return how.engine(
            jobs,
            encoder=encoder,
            metric=metric,
            movable=self.movable,
            stored_vector=stored_vector,
            read_row=self.read_row,
            limits=how.limits,
            thumbnail=how.thumbnail,
            batch_size=how.batch_size,
            workers=how.workers,
            stop=how.stop,
            read=self.reader.read,
            readers=REMOTE_READERS if self._is_remote else None,
            give_up=self.reader.close if self._is_remote else None,
        )

    @property
    def _is_remote(self) -> bool:
        """Whether any picture that was listed is not on this computer."""
        return any(not isinstance(root, Path) for root in self._roots)

    def stored_vector(self, sha256: str) -> bytes | None:
        """The vector of bytes that this collection, or one it derives from, has seen."""
        vector = vector_of_bytes(self.conn, self.collection, sha256)
        return self._from_parents(sha256) if vector is None else vector

    @cached_property
    def _from_parents(self) -> siblings.KnownVector:
        return siblings.vectors_of_parents(self.conn, self.collection)

    def read_row(self, picture: sources.Picture) -> bytes:
        """The BLOB of a row. Raises ImageError."""
        return sources.read_blob(self.conn, self.table, self.column, picture.pk)

    def write(self, batch: Sequence[Outcome]) -> None:
        """Store a batch: one transaction. Raises CollectionError as `_require_ours()`."""
        with db.transaction(self.conn):
            self._require_ours()
            others, overtaken = self._others_wrote(), 0
            for outcome in batch:
                if others and outcome.decoded is not None and self._is_done(outcome):
                    overtaken += 1
                elif outcome.failure is not None:
                    self._write_failure(outcome)
                elif outcome.keep is not None:
                    self._write_kept(outcome)
                else:
                    self._write_new(outcome)
        self.done += len(batch)
        self.summary.unchanged += overtaken
        if overtaken:
            self._queue.jump()
        send_waiting(self.conn, self.collection)
        index.keep_up(self.conn, self.collection)

    def finish(self, prune: bool, prune_rows: bool, whole: bool) -> None:
        """Forget what is gone, and failures that did not come again; note the change.

        `whole` says that everything in the source was looked at. `prune` drops missing
        files, `prune_rows` with all that people have written in their rows.
        """
        conn, collection = self.conn, self.collection
        with db.transaction(conn):
            self._require_ours()
            if (prune or prune_rows) and whole:
                self._prune(prune_rows)
            else:
                self.summary.missing = len(self._gone)
            if self.given is not None:
                pruning = (prune or prune_rows) and whole
                about = conn, collection, self.table, self.given
                self.summary.notes += finish_given(*about, pruning, prune_rows)
                if pruning and self.given.gone:
                    self._drop_rowless()
            if whole:
                self._drop_stale()
                self._drop_old_failures()
            summary = self.summary
            if self.source == "folder":
                self._keep_folders()  # with those that links led to
            changed = summary.embedded + summary.reused + summary.removed + summary.failed
            db.note_finished(conn, collection, changed > 0)
        send_waiting(conn, collection)
        index.list_waiting(conn, collection)
        self.summary.wants_index = (
            not collection.store
            and db.item_count(conn, collection) >= index.WORTHWHILE
            and db.index_row(conn, collection) is None
        )
        self.summary.new_roots = [
            str(root) for root in self._roots if self._vouched.root(root)
        ]

    # One picture

    def _root_id(self, picture: sources.Picture) -> int | None:
        if picture.root is None:
            return None
        if picture.root not in self._root_ids:
            root = db.root_id(self.conn, self.collection, picture.root)
            self._root_ids[picture.root] = root
        return self._root_ids[picture.root]

    def _place(self, picture: sources.Picture) -> dict[str, Any]:
        return {"root": self._root_id(picture), "path": picture.path}

    def _note_failure(self, picture: sources.Picture) -> None:
        self._failed.add((picture.pk, picture.path))

    def _write_failure(self, outcome: Outcome) -> None:
        picture, reason = outcome.picture, outcome.failure
        place = self._place(picture)
        db.put_failure(self.conn, self.collection, pk=picture.pk, reason=reason, **place)
        self._note_failure(picture)
        self.summary.failed += 1
        self.summary.failures.append((picture, reason))
        if picture.missing and picture.pk is not None:
            item = db.item_id(self.conn, self.collection, picture.pk)
            if item is not None:
                self._gone.add(item)

    def _write_kept(self, outcome: Outcome) -> None:
        picture = outcome.picture
        moved = outcome.keep in self._gone or outcome.keep in self._elsewhere
        self._gone.discard(outcome.keep)
        root = self._root_id(picture)
        changed = self.conn.execute(
            "update _image_similarity_items set root_id = :root, path = :path, "
            "size = :size, mtime_ns = :mtime_ns where id = :id and (root_id, path, size, "
            "mtime_ns) is not (:root, :path, :size, :mtime_ns) returning pk",
            {
                "id": outcome.keep,
                "root": root,
                "path": picture.path,
                "size": picture.size,
                "mtime_ns": picture.mtime_ns,
            },
        ).fetchall()
        if moved and changed:  # else another run did the same
            self._put_file_row(picture, changed[0]["pk"], {})
            self.summary.reused += 1
        else:
            self.summary.unchanged += 1
        db.clear_failure(
            self.conn, self.collection, pk=picture.pk, root=root, path=picture.path
        )

    def _write_new(self, outcome: Outcome) -> None:
        picture, decoded = outcome.picture, outcome.decoded
        pk = picture.pk
        if self.source == "folder":
            facts = {
                "width": decoded.width,
                "height": decoded.height,
                "format": decoded.format,
                "bytes": picture.size,
                "sha256": outcome.sha256,
                **{
                    name: decoded.facts.get(name)
                    for name in ("taken_at", "camera", "latitude", "longitude")
                },
                **({} if self._places else dict.fromkeys(PLACE_COLUMNS)),
            }
            pk = self._put_file_row(picture, self._row_of(picture, outcome.sha256), facts)
        place = self._place(picture)
        db.put_item(
            self.conn,
            self.collection,
            pk=pk,
            size=picture.size,
            mtime_ns=picture.mtime_ns,
            sha256=outcome.sha256,
            width=decoded.width,
            height=decoded.height,
            vector=outcome.vector,
            thumbnail=decoded.thumbnail,
            note=decoded.note,
            **place,
        )
        db.clear_failure(self.conn, self.collection, pk=picture.pk, **place)
        if outcome.reused:
            self.summary.reused += 1
        else:
            self.summary.embedded += 1

    def _row_of(self, picture: sources.Picture, sha256: str) -> int | None:
        """The row that a file has already, if any.

        That of its item; else one that was kept when this file was missing; else one with
        this path that is no other file's: rows stay when their embeddings are removed, and
        serve several collections.
        """
        mine = self.conn.execute(
            "select pk from _image_similarity_items where collection_id = ? "
            "and root_id = ? and path = ?",
            (self.collection.id, self._root_id(picture), picture.path),
        ).fetchone()
        mine = mine or self._kept_row(picture, sha256)
        if mine:
            return mine[0]
        same_bytes = "sha256 is :sha256" if "sha256" in self.table.columns else "1"
        free = self.conn.execute(
            f"select id from {db.quote(self.table.name)} t where path = :path "
            "and not exists (select 1 from _image_similarity_items "
            "where collection_id = :collection and pk = t.id) "
            "and not exists (select 1 from _image_similarity_missing "
            "where collection_id = :collection and pk = t.id) "
            f"order by {same_bytes} desc, id limit 1",
            {"path": picture.path, "collection": self.collection.id, "sha256": sha256},
        ).fetchone()
        return free[0] if free else None

    def _kept_row(self, picture: sources.Picture, sha256: str) -> sqlite3.Row | None:
        """The row that was kept when the file at this place, or its bytes, was missing."""
        return self.conn.execute(
            "select pk from _image_similarity_missing where collection_id = :collection "
            "and (place = :place or sha256 = :sha256) order by place = :place desc limit 1",
            {
                "collection": self.collection.id,
                "place": place(picture.root, picture.path),
                "sha256": sha256,
            },
        ).fetchone()

    def _put_file_row(
        self, picture: sources.Picture, pk: int | None, facts: Mapping[str, object]
    ) -> int:
        """Insert or update the row of a file in the columns that the table has."""
        path = PurePosixPath(picture.path)
        folder = "" if path.parent == PurePosixPath(".") else str(path.parent)
        values = {"path": picture.path, "folder": folder, "name": path.name, **facts}
        if self.label_from_folder:
            values["label"] = path.parent.name or picture.root.name
        values = {name: v for name, v in values.items() if name in self.table.columns}
        table = db.quote(self.table.name)
        if pk is None:
            return self.conn.execute(
                f"insert into {table} ({', '.join(map(db.quote, values))}) "
                f"values ({', '.join('?' * len(values))}) returning id",
                list(values.values()),
            ).fetchone()[0]
        changes = ", ".join(f"{db.quote(name)} = ?" for name in values)
        self.conn.execute(
            f"update {table} set {changes} where id = ?", [*values.values(), pk]
        )
        return pk

    # What is gone

    def _drop_rowless(self) -> None:
        """Forget items whose source row was deleted, and failures with them.

        An item of a folder's file goes as well where its row names another one by now: the
        file is there still, and gets a row again.
        """
        conn, collection, table = self.conn, self.collection, self.table
        name = db.quote(table.name)
        same = "and t.path = i.path collate binary" if self.source == "folder" else ""
        for ours in ("items", "failures", "missing"):
            with db.transaction(conn):
                rowless = conn.execute(
                    f"select i.rowid from {db.PREFIX}{ours} i where i.collection_id = ? "
                    f"and i.pk is not null and not exists (select 1 from {name} t "
                    f"where {table.join_sql('t', 'i.pk')} "
                    f"{same if ours == 'items' else ''})",
                    (collection.id,),
                ).fetchall()
                ids = [row[0] for row in rowless]
                if ours == "items":
                    db.drop_items(conn, collection, ids)
                    self.summary.removed += len(ids)
                else:
                    sql = f"delete from {db.PREFIX}{ours} where rowid = ?"
                    conn.executemany(sql, [(id,) for id in ids])

    def _prune(self, written_too: bool) -> None:
        """Drop items whose file is gone; of a folder's table the rows as well, where nobody
        has written in them or these are to go, too."""
        if self.source == "folder":
            gone = self._gone_rows()
            rows = {row[0] for row in gone}
            kept = written_rows(self.conn, self.table, rows, EMBEDDED)
            if written_too:
                again = self._missing_rows()
                self.summary.removed += len(again - rows)
                rows |= again
                kept = set()
            noted = [row for row in gone if row[0] in kept]
            db.note_missing(self.conn, self.collection, noted)
            self.summary.kept_rows = len(kept)
            sql = f"delete from {db.quote(self.table.name)} where id = ?"
            self.conn.executemany(sql, [(row,) for row in rows - kept])
            self.conn.executemany(
                "delete from _image_similarity_missing where collection_id = ? and pk = ?",
                [(self.collection.id, row) for row in rows - kept],
            )
        db.drop_items(self.conn, self.collection, self._gone)
        self.summary.removed += len(self._gone)

    def _gone_rows(self) -> list[tuple[db.Key, str, str]]:
        """The rows of missing files: their key, where the file was, and its SHA-256."""
        roots = db.roots(self.conn, self.collection)
        sql = "select pk, root_id, path, sha256 from _image_similarity_items where id = ?"
        rows = [self.conn.execute(sql, (item,)).fetchone() for item in self._gone]
        return [
            (row["pk"], place(roots[row["root_id"]], row["path"]), row["sha256"])
            for row in rows
            if row is not None
        ]

    def _missing_rows(self) -> set[db.Key]:
        """The rows that earlier runs kept, of files that this run would have met."""
        sql = "select pk, place from _image_similarity_missing where collection_id = ?"
        return {
            pk
            for pk, at in self.conn.execute(sql, (self.collection.id,)).fetchall()
            if self._told_around(at) in self._listed
            and self._closed.isdisjoint(folders_of(at))
        }

    def _drop_stale(self) -> None:
        """Forget items whose cell was emptied, or names a picture that failed."""
        live = f"select i.id {db.live_sql(self.collection, self.table)}"
        stale = self.conn.execute(
            "select id from _image_similarity_items "
            f"where collection_id = ? and id not in ({live})",
            (self.collection.id,),
        ).fetchall()
        db.drop_items(self.conn, self.collection, [row[0] for row in stale])
        self.summary.removed += len(stale)

    def _drop_old_failures(self) -> None:
        """Forget failures of pictures that are all right now, or gone."""
        noted = self.conn.execute(
            "select f.id, f.pk, f.path, r.path as root from _image_similarity_failures f "
            "left join _image_similarity_roots r on r.id = f.root_id "
            "where f.collection_id = ?",
            (self.collection.id,),
        ).fetchall()
        old = [
            (row["id"],)
            for row in noted
            if (row["pk"], row["path"]) not in self._failed
            and (self.source != "folder" or self._was_listed(row["root"], row["path"]))
        ]
        sql = "delete from _image_similarity_failures where id = ?"
        self.conn.executemany(sql, old)

    def _was_listed(self, root: str, path: str) -> bool:
        return self._told_around(place(root, path)) in self._listed


def _pictures(count: int, one: str, many: str) -> str:
    return f"1 picture {one}" if count == 1 else f"{count:,} pictures {many}"


def _folder_of(file: Path) -> Path:
    """The folder that was named, or the one of a file that was."""
    absolute = Path(os.path.abspath(file))
    return absolute if file.is_dir() else absolute.parent


def _some(pairs: Iterator[T]) -> Iterator[list[T]]:
    while some := list(islice(pairs, AT_ONCE)):
        yield some


def _as_listed(picture: sources.Picture) -> sources.Picture:
    """A picture that was read, as its source lists it: of an address without a size."""
    return picture._replace(size=0) if picture.root == WebRoot() else picture
