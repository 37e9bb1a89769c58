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
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from . import database as db
from . import index, siblings, sources, trust
from .contents import lost_with
from .encoders import Encoder, EncoderSpec
from .errors import CollectionError, Stopped
from .images import Limits
from .pipeline import Job, Outcome
from .plan import Item, Queue, Stored, chunks, folder, folders_of, place, untouched
from .roots import BucketRoot, Root, WebRoot
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

DEFAULT_NAME = "default"
REMOTE_READERS = 16  # threads that read what is not on this computer: each mostly waits
PLACE_COLUMNS = ("latitude", "longitude")
REMOTE_PAUSE = 60  # seconds between two looks at a bucket, which cost money, or the web


@dataclass
class Summary:
    """What a run did. `missing` files keep their vectors until a run with `prune`, which
    keeps the `kept_rows` in which people have written something."""

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
            "notes",
        )
        counts = {name: value for name, value in vars(self).items() if name not in others}
        failures = [{"path": p.label, "reason": reason} for p, reason in self.failures]
        return {**counts, "seconds": round(self.seconds, 1), "failures": failures}


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
        given: Given | None = None,
    ) -> None:
        """`places` is whether rows are told where a picture was taken; None as before."""
        self.conn = conn
        self.given = given  # rows of a CSV or a program, which the table has by now
        self.reader = reader
        self.database = database
        self._vouched = vouched
        self.table_name = table
        self.source, self.column = mode
        self.before = before
        self.label_from_folder = label_from_folder
        self.summary = Summary(notes=list(given.notes) if given else [])
        self.done = 0
        self.movable: dict[str, list[int]] = {}  # hash → items whose file is gone
        self._gone: set[int] = set()  # items whose file is gone
        self._failed: set[tuple] = set()  # (pk, root id, path)
        self._listed: set[str] = set()  # folders that were listed as a whole
        self._closed: set[str] = set()  # places inside them that were not
        self._roots: set[Root] = set()  # of pictures that are there
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
        self, files: list[Path | BucketRoot], root: Root | None, where: str | None
    ) -> Iterator[sources.Picture]:
        """What the source holds, one by one. Raises CollectionError."""
        if self.source == "folder":
            if where:
                raise CollectionError("--where chooses rows of a table, not files")
            return self._list_folders(files)
        table = db.source_table(self.conn, self.table_name)
        columns = {name.lower(): name for name in table.columns}
        if self.column.lower() not in columns:
            raise CollectionError(
                f"{table.name!r} has no column {self.column!r}; it has "
                f"{', '.join(table.columns)}"
            )
        self.column = columns[self.column.lower()]
        self.table = table
        if self.source == "blob":
            return sources.blob_pictures(self.conn, table, self.column, where)
        if root is None:
            beside = Path(os.path.abspath(self.database)).parent
            root = next(iter(self._vouched_roots()), beside)
            self._check([root], listing=False)
        self._note_pause([root])
        if isinstance(root, Path) and not root.is_dir():
            raise CollectionError(
                f"The root folder {root} does not exist: name one by --root"
            )
        return sources.column_pictures(
            self.conn, table, self.column, root, where, self.reader.buckets
        )

    def _list_folders(self, named: list[Path | BucketRoot]) -> Iterator[sources.Picture]:
        """The pictures in folders and buckets: those named, or embedded before."""
        roots = named or [
            known
            for known in self._vouched_roots()
            if (known.is_dir() if isinstance(known, Path) else known != WebRoot())
        ]
        if not roots:
            raise CollectionError("The folders embedded before are gone: name one")
        files = [root for root in roots if isinstance(root, Path)]
        buckets = [root for root in roots if isinstance(root, BucketRoot)]
        self._listed = {os.path.abspath(file) for file in files if file.is_dir()}
        self._listed |= set(map(str, buckets))
        self._note_pause(roots)
        if not named:
            self._check(roots, listing=True)
        return chain(
            sources.folder_pictures(files),
            sources.bucket_pictures(buckets, self.reader.buckets),
        )

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
        recorded = db.roots(self.conn, self.before).values() if self.before else []
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
            if root is not None and any(picture.problem is None for picture in chunk):
                self._roots.add(root)
            failing = (place(p.root, p.path) for p in chunk if p.problem and p.path)
            self._closed.update(one.removesuffix("/.") for one in failing)
        if stored and self.source == "folder":
            gone = stored.gone(self._listed, self._closed)
            self._gone = set(gone)
            for item, sha256 in gone.items():
                self.movable.setdefault(sha256, []).append(item)
        if limit is not None:
            queue.cut(limit)
        self.total = len(queue)
        return queue

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
        moved = outcome.keep in self._gone
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
                **dict.fromkeys(("taken_at", "camera", "latitude", "longitude")),
                **decoded.facts,
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
                rows |= self._missing_rows()
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
        listed = {place(root, "").rstrip("/") for root in self._listed}
        return {
            pk
            for pk, at in self.conn.execute(sql, (self.collection.id,)).fetchall()
            if not listed.isdisjoint(folders_of(at))
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
            and (self.source != "folder" or row["root"] in self._listed)
        ]
        sql = "delete from _image_similarity_failures where id = ?"
        self.conn.executemany(sql, old)


def _as_listed(picture: sources.Picture) -> sources.Picture:
    """A picture that was read, as its source lists it: of an address without a size."""
    return picture._replace(size=0) if picture.root == WebRoot() else picture
