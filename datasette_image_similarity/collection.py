"""The Python API: a collection is one table of pictures seen by one encoder.

from datasette_image_similarity import ImageCollection

photos = ImageCollection("photos.db")
photos.embed(["~/Pictures"])
for hit in photos.similar(12, k=5):
    print(hit.score, hit.row["path"])
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from . import database as db
from . import moves, query, sources, trust, words
from .choosing import LINKED_FILES, LINKS, RunSettings, Skipped
from .csv_files import CsvTable
from .distances import near_duplicates, random_pairs
from .embed import How, Run, Summary
from .encoders import Encoder, EncoderSpec, load_encoder, restore_encoder
from .errors import CollectionError, EncoderError, ImageError, shell_line
from .explore.exports import (
    Exported,
    TrustedFiles,
    entries_of_hits,
    export_file,
    filtered_entries,
    usual_caption,
)
from .explore.map import MapStatus, make_map, map_status
from .formats import picture_suffixes
from .images import LOCAL_FILES, UPLOADS, Crop, Decoder, Limits, Request
from .index import WORTHWHILE, IndexCache, IndexStatus, build_index, index_status
from .moves import away
from .pipeline import Job, Outcome, embed_pictures, finished_vector
from .plan import Queue
from .progress import silent
from .query import Filter, Hit, Query
from .roots import BucketRoot, Root, WebRoot, named
from .rows import put_given
from .siblings import is_default, lacking
from .stores.indexing import StoreIndex, drop_store_index, store_index
from .stores.items import vector_of_item
from .stores.opening import Stores, store_url
from .stores.places import clear_places, places_of
from .stores.sending import unsent_size

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .encoders.transform import Transform
    from .explore.clusters import Clustering
    from .explore.duplicates import Duplicates
    from .explore.evaluations import Evaluation
    from .explore.marked import Written
    from .learning.finetune import Finetuned, Settings
    from .learning.finetune_run import Epoch
    from .learning.reduce import Reduced
    from .learning.train import Trained
    from .ray_engine import RayEngine
    from .stores.moving import Moved
    from .stores.reconciling import Reconciled
    from .vector_export import ExportedVectors
    from .vector_import import Imported

THUMBNAIL = 320  # longest side of stored thumbnails, in pixels
LISTED = 100_000  # pictures after which it is told again how far the listing is
DEFAULT_TABLE = "images"
DEFAULT_MODEL = "resnet50"
DEFAULT_DIMS = 256  # of `reduce()`: learning/pca.py says why


@dataclass(frozen=True)
class EncoderOptions:
    """What was asked of the encoder; None means "as before", or the default."""

    model: str | None = None
    weights: str | None = None
    pooling: str | None = None
    fit: str | None = None
    device: str = "auto"
    precision: str = "auto"
    size: int | None = None
    dims: int | None = None  # PCA to so many dimensions, learned from the pictures


@dataclass(frozen=True)
class Progress:
    """How far a run has come. `encoder` says what embeds, on what, how precisely."""

    encoder: str
    done: int
    total: int
    failed: int
    seconds: float


MAX_NOTES = 5  # that `status` shows


@dataclass(frozen=True)
class Note:
    """What a user should know about a picture that was embedded."""

    picture: str  # its path, else the key of its row
    note: str


@dataclass(frozen=True)
class Status:
    """What a collection holds. `stale` items have lost their row, or it has changed.

    None is for what was not counted.
    """

    name: str
    table: str
    encoder: str
    dimensions: int
    metric: str
    embedded: int
    failures: int
    missing: int  # rows that were kept when the vector of their missing file was pruned
    stale: int | None
    noted: int | None  # pictures that were embedded all the same, as files cut off
    notes: list[Note]  # of the first few of these
    thumbnails: int | None
    bytes: int | None  # of vectors and thumbnails in this file
    updated_at: str | None
    index: IndexStatus | None
    store_index: StoreIndex | None  # of the store, where that was noted
    map: MapStatus | None
    default: bool  # used where none is named
    behind: int | None  # pictures that the default has, and this one has not
    store: str  # URL of where the vectors are; empty for this file
    unsent: int  # vectors that the store does not have yet, or still has
    away: dict[str, int]  # pictures in folders that are not there, or whose drive is not

    @property
    def wants_index(self) -> bool:
        """Whether there is none, and there are so many vectors that it would help."""
        if self.store:
            there = self.store_index is not None and not self.store_index.exact
        else:
            there = self.index is not None
        return not there and self.embedded >= WORTHWHILE


class ImageCollection:
    """The collection called `name` over a table; without a name the table's default: the
    one that `make_default()` chose, else the oldest.

    Nothing is opened or made before it is needed: `embed()` creates the database, the
    table and the collection where they are missing. Use it in a `with` statement, or
    call `close()`.
    """

    def __init__(
        self,
        database: str | Path,
        table: str = DEFAULT_TABLE,
        *,
        name: str | None = None,
    ) -> None:
        self.database = Path(os.path.expanduser(database))
        self.table = table
        self.name = name
        self.vouched = trust.Vouched(self.database)
        self._conn: sqlite3.Connection | None = None
        self._encoder: Encoder | None = None
        self._cache = IndexCache()

    def __enter__(self) -> ImageCollection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def connect(self, *, create: bool = False) -> sqlite3.Connection:
        """The connection to the database. Raises DatabaseError."""
        if self._conn is None:
            self._conn = db.connect(self.database, create=create)
            self._conn.stores = Stores(self.vouched.may_open)
        return self._conn

    # Embedding

    def embed(
        self,
        source: str
        | Path
        | Iterable[str | Path]
        | Iterable[Mapping[str, object]]
        | CsvTable
        | None = None,
        *,
        path_column: str | None = None,
        url_column: str | None = None,
        blob_column: str | None = None,
        root: str | Path | None = None,
        pk: str | None = None,
        where: str | None = None,
        label_from_folder: bool = False,
        places: bool | None = None,
        encoder: EncoderOptions | None = None,
        metric: str | None = None,
        batch_size: int = 32,
        workers: int | None = None,
        limit: int | None = None,
        force: bool = False,
        prune: bool = False,
        prune_rows: bool = False,
        thumbnails: bool = True,
        limits: Limits = LOCAL_FILES,
        progress: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        skip: Iterable[sources.Picture] = (),
        exclude: Iterable[str] | None = None,
        default_excludes: bool | None = None,
        follow_links: bool | None = None,
        copy_of: str | Path | None = None,
        store: str | None = None,
        allow_private_addresses: bool = False,
        engine: RayEngine | None = None,
    ) -> Summary:
        """Embed what is new or has changed, and store it batch by batch.

        `source` is one of: folders and files, which become rows of the table, also as
        "s3://bucket/folder" and "gs://bucket/folder"; rows as dictionaries, or as
        `csv_files.read_csv()` gives them, which are inserted or updated by `pk` (default:
        "id"; without it rows are numbered, and recognised by what they say or by their
        picture) and name their pictures in `path_column` or `url_column`, or hold them in
        `blob_column`; None for the rows that the table has, or for the folders embedded
        before. Cells may also hold pictures as `data:` URLs. Paths are relative to `root`
        (default: the folder of the database), which may be in a bucket, and may not leave
        it: see `sources.locate()`. `url_column` holds addresses, fetched once unless
        `force`. `places` is whether `latitude` and `longitude` are filled in a table made
        of folders: false empties them, None is as before. `allow_private_addresses` lets
        addresses lead into this computer and its network. `where` is a SQL condition on
        the table's rows.

        `limit` embeds so many at most; `force` embeds everything again, and may change
        the encoder. `exclude` are patterns by gitignore's rules for files and folders to
        leave out, beside the usual ones (`choosing.DEFAULT_EXCLUDES`) unless
        `default_excludes` is false; `follow_links` goes on in linked folders. These three
        are kept for the next run; None is for as they are kept. `prune` deletes the vectors
        of missing and excluded files and, in a table made of folders, those of their rows
        in which nobody has written anything (`written.py`); `prune_rows` deletes all rows
        of such files.

        `progress` is called after each batch, a transaction each; `stop()` turning true
        ends the run after the current one, or without it where pictures come from
        elsewhere. `skip` are pictures not to look at again. `copy_of` is another database,
        whose table is copied here first, over an earlier copy. `engine` has the machines of
        a Ray cluster read, decode and encode: see `ray_engine.RayEngine`.

        `store` is the URL of a store for the vectors of a new collection, in place of this
        file (`stores/opening.py`); from then on the collection remembers it. With `force`
        it may be another one than before, as another encoder needs.

        With `encoder.dims` a new collection (or all of it again, with `force`) is stored
        projected by PCA, learned from the first pictures: some thousands from all over
        the source. Until it is, nothing is stored; `stop()` turning true meanwhile raises
        `errors.Stopped`.

        Raises EncoderError before the database is touched; CollectionError for a table
        or column that does not fit, or another encoder or store than the collection's;
        EngineError when the cluster cannot do it; DatabaseError when the database cannot be
        written; StoreError when the store cannot be used. A picture that fails stops
        nothing: it is in the summary's failures and in `_image_similarity_failures`.
        """
        started = time.perf_counter()
        files, given = _files_or_rows(source)
        rows = given.rows if isinstance(given, CsvTable) else given
        _check_columns(path_column, url_column, blob_column, rows)
        top = _root(root, url_column)
        before = self._existing()
        store = self._store(before, store, force)
        known = db.collections(self.connect()) if self.database.exists() else []
        column = path_column or url_column
        mode = _mode(files, column, blob_column, before, self.table, known)
        if places is not None and mode[0] != "folder":
            raise CollectionError("--places and --no-places are about pictures in folders")
        kept = partial(db.run_setting, self.connect(), before) if before else lambda _: None
        settings = RunSettings.of(kept).told(
            exclude=None if exclude is None else tuple(filter(None, exclude)),
            default_excludes=default_excludes,
            follow_links=follow_links,
        )
        if mode[0] != "folder" and (exclude, default_excludes, follow_links) != (None,) * 3:
            raise CollectionError(
                "--exclude, --default-excludes and --follow-links are about files in "
                "folders. Choose rows of a table by --where"
            )
        files = [moves.as_known(file, settings.folders) for file in files]
        reader = sources.Reader(allow_private=allow_private_addresses)
        _check_buckets(reader, files, top)
        self._check_source(files, rows, mode, copy_of)
        choice = settings.choice()
        listed = _some(sources.listed(files, choice, reader.buckets), files, choice.skipped)
        if (before is None or force) and mode[0] != "folder" and not rows:
            with self._table_from(copy_of) as conn:  # before a network is loaded
                sources.require_rows(
                    conn, db.source_table(conn, self.table), mode[1], where
                )
        options = asked = encoder or EncoderOptions()
        if engine is not None:
            options = replace(asked, device="auto")  # what is asked for need not be here
        spec, load = self._choose_encoder(before, options, metric, force)
        learns = options.dims is not None and (before is None or force)
        if self._encoder is not None and (before is None or force):
            _check_length(self._encoder.dimensions, options.dims)
        with reader, self._no_empty_file(), db.explained(self.database):
            conn = self.connect(create=bool(files or rows or copy_of))
            if copy_of is not None:
                self._copy_from(copy_of, before)
            put = put_given(conn, self.table, given, pk, mode[1]) if rows else None
            run = Run(
                conn,
                database=self.database,
                vouched=self.vouched,
                table=self.table,
                mode=mode,
                before=before,
                label_from_folder=label_from_folder,
                reader=reader,
                places=places,
                settings=settings,
                choice=choice,
                given=put,
            )
            pictures = run.list(files, listed, top, where)
            opening = {
                "name": self.name,
                "metric": metric,
                "thumbnails": thumbnails,
                "store": store,
            }
            if not learns:
                run.open(self._encoder, spec=spec, **opening)
                thumbnails = run.collection.thumbnails
            jobs = run.plan(_counted(pictures, progress, started), skip, force, limit)
            readable = self._make_ready(jobs, load, learns)
            describe = self._describer(engine) if readable else spec.__str__
            report = _reporter(progress, lambda: describe() + run.learning, started)
            how = How(
                limits=limits,
                thumbnail=THUMBNAIL if thumbnails else None,
                batch_size=batch_size,
                workers=workers,
                stop=stop,
                engine=_pipeline(engine if readable else None, asked),
            )
            queue = run.jobs()
            if learns:
                self._learn(run, queue, options.dims, how, report, opening)
            encoder = self._encoder if readable else None
            run.work(queue, encoder, how, force=force, report=report)
            run.finish(prune, prune_rows, whole=not (where or limit or run.summary.stopped))
        run.summary.cache_problem = reader.cache_problem
        run.summary.seconds = time.perf_counter() - started
        return run.summary

    def _make_ready(
        self, jobs: Queue, load: Callable[[], Encoder] | None, learns: bool
    ) -> bool:
        """Load the encoder where a picture can be read at all, which is the answer, and
        put those first that something is learned from."""
        readable = jobs.readable()
        if readable and load is not None:
            self._encoder = load()
        if learns:
            from .learning.sample import pictures_wanted

            jobs.put_first(pictures_wanted(self._encoder.dimensions))
        if readable:
            jobs.put_first(self._encoder.sample)
        return readable

    def _describer(self, engine: RayEngine | None) -> Callable[[], str]:
        """What says what embeds. A cluster is connected to. Raises EngineError."""
        if engine is None:
            return self._describe_encoder
        engine.start()
        return partial(engine.describe, self._encoder.spec)

    def _learn(
        self,
        run: Run,
        jobs: Iterator[Job],
        dims: int,
        how: How,
        report: Callable[[int, int, int], None],
        opening: dict[str, Any],
    ) -> None:
        """Learn PCA from the first jobs, open the collection and store these in it."""
        from .learning.sample import Sample

        metric = opening["metric"] or (run.before.metric if run.before else "cosine")
        with Sample(self._encoder.dimensions) as sample:
            encoder = run.learn(
                *(jobs, self._encoder, sample, how),
                dims=dims,
                metric=metric,
                report=report,
            )
            run.open(encoder, spec=encoder.spec, **opening)
            run.write_sample(sample, encoder, how)
        self._encoder = encoder

    # Asking

    def similar(
        self,
        pk: Any,
        k: int = 10,
        where: str | None = None,
        *,
        unlike: Any = (),
        text: words.Texts | None = None,
        unlike_text: words.Texts | None = None,
        crop: Crop | None = None,
        distinct: bool = False,
        one_per: str | None = None,
        max_distance: float | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k rows most like a row, best first, that row itself left out.

        `pk` is the row's primary key (its rowid without one; a tuple for a compound key),
        a list of keys, or a dictionary of weights by key. Results are less like the rows
        in `unlike`, which takes the same: see `query.rocchio()`. With `text` results are
        like that as well, and less like `unlike_text`: see `search()`. `crop` asks with a
        part of the first row's picture alone, which loads the encoder; where its file may
        not be read, of the stored thumbnail, with a warning.

        `where` is a SQL condition on the table's columns. `distinct` folds near-duplicates
        of the query pictures and of better hits into these; `one_per` gives the best hit
        of each value of a column, of each "cluster", or of each group of "duplicates".
        `max_distance` is in the collection's metric; `exact` leaves the compressed index
        alone. Raises CollectionError for an unknown key, one without an embedding, groups
        that are not there, or k < 1.
        """
        collection, conn = self._open()
        likes, unlikes = self._items(pk), self._items(unlike)
        if likes.keys() & unlikes.keys():
            raise CollectionError("A row can be liked or unliked, not both")
        vectors = query.stored_vectors(conn, collection, [*likes, *unlikes])
        if crop is not None and likes:
            vectors[0] = self._encode_crop(self._key_of(next(iter(likes))), crop)
        vector = words.mixed(
            conn,
            collection,
            list(zip(vectors, likes.values(), strict=False)),
            list(zip(vectors[len(likes) :], unlikes.values(), strict=True)),
            self._encode_texts(text),
            self._encode_texts(unlike_text),
        )
        asked = Query(
            vector,
            k,
            without=frozenset([*likes, *unlikes]),
            max_distance=max_distance,
            exact=exact,
            distinct=self._near_duplicates() if distinct else None,
            one_per=one_per,
        )
        return self._ask(asked, where)

    def search(
        self,
        image: str | Path | bytes | Image | None = None,
        k: int = 10,
        where: str | None = None,
        *,
        text: words.Texts | None = None,
        unlike_text: words.Texts | None = None,
        crop: Crop | None = None,
        distinct: bool = False,
        one_per: str | None = None,
        max_distance: float | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k rows most like a picture, words, or both.

        `image` is a file's path, its bytes, or a PIL image. `text` is one text, a list of
        them or a dictionary of weights by text, and takes a collection whose encoder reads
        words; `unlike_text` the same, for what results should be less like. How the two
        are mixed: `words.mixed()`. Other options as of `similar()`.

        Loads the encoder on first use. Raises ImageError when it is no usable picture,
        EncoderError when the encoder cannot be made again, TextError for words that cannot
        be searched with.
        """
        if image is None and crop is not None:
            raise ImageError("A crop needs a picture: there are words alone")
        collection, conn = self._open()
        asked = Query(
            words.mixed(
                conn,
                collection,
                [(self.encode(image, crop=crop), 1.0)] if image is not None else [],
                [],
                self._encode_texts(text),
                self._encode_texts(unlike_text),
            ),
            k,
            max_distance=max_distance,
            exact=exact,
            distinct=self._near_duplicates() if distinct else None,
            one_per=one_per,
        )
        return self._ask(asked, where)

    def encode(
        self, image: str | Path | bytes | Image, *, crop: Crop | None = None
    ) -> bytes:
        """A picture's embedding as it would be stored: float32 bytes of shape (d,).

        `crop` embeds a part of it.
        """
        collection, _ = self._open()
        data, limits = _image_bytes(image)
        encoder = self.load_encoder()
        with Decoder(limits) as decoder:
            # The same request as when embedding: what is asked for decides the scale at
            # which a big JPEG is decoded.
            thumbnail = THUMBNAIL if collection.thumbnails else None
            request = Request(input=encoder.input, thumbnail=thumbnail, crop=crop)
            decoded = decoder.decode(data, request)
        vector = finished_vector(encoder.encode(decoded.pixels[None])[0], collection.metric)
        if vector is None:
            raise ImageError("The encoder gave a vector of zeros, NaN or infinity for it")
        return vector

    def encode_text(self, text: str) -> bytes:
        """A text's embedding, to compare with those stored: float32 bytes of shape (d,).

        Raises TextError where the collection's encoder reads no words, or not these.
        """
        return self._encode_texts(text)[0][0]

    def load_encoder(
        self, device: str = "auto", precision: str = "auto", *, download: bool = True
    ) -> Encoder:
        """The encoder that made this collection, ready to use.

        A weights file is looked for where `embed()` last saw one with its SHA-256;
        published weights that are not here are downloaded if `download`. Raises
        EncoderError when it cannot be made again.
        """
        if self._encoder is None:
            collection, conn = self._open()
            spec = EncoderSpec.from_json(collection.encoder)
            file = trust.weights_file(spec.weights_sha256)
            self._encoder = restore_encoder(
                spec,
                transform=_transform(conn, collection),
                weights_file=file,
                device=device,
                precision=precision,
                download=download,
            )
        return self._encoder

    def vector(self, pk: Any) -> np.ndarray:
        """The stored embedding of a row: float32 array of shape (d,).

        Raises CollectionError for an unknown key or one without an embedding.
        """
        import numpy as np

        collection, conn = self._open()
        parts = list(pk) if isinstance(pk, (tuple, list)) else [pk]
        source = db.source_of(conn, collection)
        key = source.find(conn, parts)
        item = None if key is None else sources.live_item(conn, collection, source, key)
        data = None if item is None else vector_of_item(conn, collection, item)
        if data is None:
            row = db.key_in_words(pk)
            raise CollectionError(f"Row {row} of {self.table!r} has no embedding")
        return np.frombuffer(data, dtype="<f4").astype(np.float32)

    def build_index(
        self,
        *,
        recall: float | None = None,
        rebuild: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> IndexStatus:
        """Make the compressed index, go on with it, or bring it up to date.

        `recall` is the recall@10 wanted of it (.99, or as before); `rebuild` makes it
        anew. `progress` is told what is being done and how far it is. Raises
        CollectionError for a recall out of range, too few vectors, or vectors in a store:
        see `build_store_index()`.
        """
        collection, conn = self._open()
        if collection.store:
            raise CollectionError(
                f"The vectors of {self.table!r} are in {collection.store}, which has "
                "indexes of its own: see build_store_index()"
            )
        with db.explained(self.database):
            return build_index(
                conn,
                collection,
                recall=recall,
                rebuild=rebuild,
                say=progress or silent,
                stop=stop,
            )

    def export(
        self,
        file: str | Path,
        hits: Sequence[Hit] | None = None,
        *,
        where: str | None = None,
        caption: str | None = None,
        title: str | None = None,
    ) -> Exported:
        """Write pictures to a file: a zip of them, or a contact sheet in one HTML page.

        `file` ends in .zip or .html. The pictures are `hits`, or without these all rows
        that fulfil `where`, a condition over the table's columns. `caption` is the column
        that names them. A zip holds the originals where they lie in a folder that `embed`
        has noted for this database and have not changed, else thumbnails; its manifest.csv
        says which. Raises CollectionError for another ending or column.
        """
        collection, conn = self._open()
        source = db.source_of(conn, collection)
        file = Path(file)
        if file.suffix.lower() not in (".zip", ".html"):
            raise CollectionError(f"{file} must end in .zip or .html")
        if caption is not None and caption not in source.columns:
            raise CollectionError(f"Table {self.table!r} has no column {caption!r}")
        if hits is None:
            try:
                condition = Filter(where) if where else None
                entries, _ = filtered_entries(conn, collection, source, condition)
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise CollectionError(f"The condition {where!r}: {error}") from None
        else:
            entries = entries_of_hits(conn, collection, source, hits)
        roots = trust.trusted_roots(self.database)
        with sources.Reader() as reader:
            return export_file(
                file,
                entries,
                TrustedFiles(conn, collection, source, roots, reader),
                caption or usual_caption(collection, source),
                title or f"Pictures of {collection.table}",
            )

    def export_vectors(
        self,
        file: str | Path,
        *,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> ExportedVectors:
        """Write the vectors to a Parquet file, for other programs and `import_vectors()`.

        What is in it: `vector_files.py`. A file that is there is replaced, once all is
        written. Raises CollectionError where that is not possible, StoreError for a store
        that cannot be used, `errors.Stopped` when `stop()` turns true.
        """
        from .vector_export import export_vectors

        collection, conn = self._open()
        with db.explained(self.database):
            return export_vectors(
                conn,
                collection,
                Path(os.path.expanduser(file)),
                say=progress or silent,
                stop=stop,
            )

    def import_vectors(
        self,
        file: str | Path,
        *,
        replace: bool = False,
        store: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Imported:
        """Make this collection of vectors that `export_vectors()` wrote to a file.

        Its rows are found by key in the table, which is made where the vectors are of a
        folder's pictures and it is missing. `replace` drops a collection of this name (that
        in the file by default). `store` is the URL of a store for the vectors. All is
        taken in or nothing. Raises CollectionError for a file that is wrong or does not
        fit, StoreError, `errors.Stopped` when `stop()` turns true.
        """
        from .vector_files import VectorFile
        from .vector_import import import_vectors

        url = store_url(store) if store else ""
        with (
            VectorFile(Path(os.path.expanduser(file))) as opened,
            self._no_empty_file(),
            db.explained(self.database),
        ):
            conn = self.connect(create=True)
            if url:
                self.vouched.store(url)
            return import_vectors(
                conn,
                opened,
                table=self.table,
                name=self.name,
                replace=replace,
                store=url,
                say=progress or silent,
                stop=stop,
            )

    def build_store_index(
        self,
        type: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        search: Mapping[str, int] | None = None,
        recall: float | None = None,
        rebuild: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> StoreIndex:
        """Have the store that the vectors are in make its own index, and measure it.

        `type` and `params` as the engine names them ("HNSW", {"M": 16}); without a type
        that which it has is measured, or HNSW made where it has none. It is searched as
        `search` says, or as cheaply as reaches `recall` (recall@10, .99 by default).
        Raises CollectionError for vectors in the database itself, StoreError for what the
        store refuses; `errors.Stopped` when `stop()` turns true.
        """
        from .stores.indexing import make_store_index

        collection, conn = self._open()
        with db.explained(self.database):
            return make_store_index(
                conn,
                collection,
                type=type,
                params=params,
                search=search,
                recall=recall,
                rebuild=rebuild,
                say=progress or silent,
                stop=stop,
            )

    @property
    def store(self) -> str:
        """The URL of the store that the vectors are in; "" for the database itself."""
        return self._find()[0].store

    def drop_index(self) -> None:
        """Search exactly again. Without an index nothing happens."""
        collection, conn = self._open()
        if collection.store:
            drop_store_index(conn, collection)
            return
        with db.explained(self.database), db.transaction(conn):
            db.drop_index(conn, collection)

    def map(
        self,
        *,
        method: str = "tsne",
        seed: int = 0,
        grid: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> MapStatus:
        """Lay the collection out in two dimensions, in place of an older map.

        `method` is "tsne", "umap" or "pca"; the same `seed` gives the same map. With
        `grid` every picture gets a cell of a grid, too. Raises CollectionError for an
        unknown method, a missing library (extra [explore] or [umap]) or a collection
        without pictures; `errors.Stopped` when `stop()` turns true: then the
        older map stays.
        """
        collection, conn = self._open()
        with db.explained(self.database):
            return make_map(
                conn,
                collection,
                method=method,
                seed=seed,
                grid=grid,
                say=progress or silent,
                stop=stop,
            )

    def evaluate(
        self,
        label: str,
        *,
        split: str | None = None,
        queries: Sequence[str] = (),
        exact: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """How good the results are by a label column; the run is stored.

        Every labelled picture asks for its nearest among the others, or the rows whose
        value in the column `split` is one of `queries` among the rest. `exact` leaves the
        compressed index alone. Definitions: `explore/judging.py`. Raises CollectionError
        for columns that do not fit, Stopped when `stop()` turns true.
        """
        from .explore.evaluate import evaluate

        collection, conn = self._open()
        with db.explained(self.database):
            return evaluate(
                conn,
                collection,
                label,
                split=split,
                queries=queries,
                exact=exact,
                say=progress or silent,
                stop=stop,
            )

    def finetune(
        self,
        label: str,
        weights_to: str | Path,
        *,
        settings: Settings | None = None,
        device: str = "auto",
        workers: int | None = None,
        anyway: bool = False,
        restart: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        epoch: Callable[[Epoch], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Finetuned:
        """Train the collection's network by a label column, and write its weights to a
        .safetensors file, for `embed(encoder=EncoderOptions(weights=…))`.

        Nothing is written where classes held out get worse and not `anyway`. A run that
        was stopped is gone on with, unless it is to `restart`. `epoch` is told each
        epoch's figures. See `learning/finetune.py` for these, and for what is raised.
        """
        from .learning.finetune import Settings, finetune

        collection, conn = self._open()
        with db.explained(self.database):
            return finetune(
                conn,
                collection,
                label,
                Path(os.path.expanduser(weights_to)),
                settings=settings or Settings(),
                device=device,
                workers=workers or os.cpu_count() or 1,
                roots=trust.trusted_roots(self.database),
                anyway=anyway,
                restart=restart,
                say=progress or silent,
                note=epoch,
                stop=stop,
            )

    def reduce(
        self,
        dims: int = DEFAULT_DIMS,
        *,
        whiten: bool = False,
        shrinkage: float | None = None,
        to: str | None = None,
        replace: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Reduced:
        """Make a collection of smaller vectors: PCA, learned from this one's.

        It is called `to`, "pca-256" by default, and lies beside this one; with `replace` it
        takes this one's place and the full vectors are gone. `whiten` divides each of the
        `dims` components by its standard deviation, after the variances were drawn
        towards their mean by `shrinkage`: 0 not at all, 1 leaves plain PCA, None is .75.
        Raises CollectionError for more dimensions than there are, or than can be learned
        from so many pictures, and for a name that is taken;
        `errors.Stopped` when `stop()` turns true: then nothing has changed.
        """
        from .learning.pca import DEFAULT_SHRINKAGE
        from .learning.reduce import reduce_collection

        if whiten and shrinkage is None:
            shrinkage = DEFAULT_SHRINKAGE
        collection, conn = self._open()
        with db.explained(self.database):
            made = reduce_collection(
                conn,
                collection,
                dims,
                shrinkage=shrinkage if whiten else None,
                name=to,
                replace=replace,
                say=progress or silent,
                stop=stop,
            )
        if replace:
            self._encoder = None  # it gives the full vectors
        return made

    def train(
        self,
        label: str | None = None,
        *,
        to: str = "trained",
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Trained:
        """Learn a projection of the stored vectors from labels: a new collection `to`.

        `label` is a column; or ask for `decisions=True`, `feedback=True`. Other options and
        what they mean: `learning.train.Options`. What it gains on pictures and on classes
        held out is in what is returned; where the latter get worse, nothing is stored
        unless `anyway=True`. Raises CollectionError for options that do not fit, a name
        that is taken, too few labels, or without torch; `errors.Stopped` when
        `stop()` turns true, with nothing stored.
        """
        from .learning.train import Options, train

        collection, conn = self._open()
        with db.explained(self.database):
            return train(
                conn,
                collection,
                to,
                Options(label=label, **options),
                say=progress or silent,
                stop=stop,
            )

    def clusters(
        self,
        *,
        method: str = "kmeans",
        k: int | None = None,
        min_size: int | None = None,
        seed: int = 0,
        label: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Clustering:
        """Put pictures that look alike into clusters, in place of earlier ones.

        `method` is "kmeans" (`k` clusters, √(n / 2) and at most 200 by default) or
        "hdbscan" (dense groups of at least `min_size`, 10 by default; the others are in no
        cluster). The same `seed` gives the same clusters. `label` is a column to suggest
        names from. Names that people have given go over to the new cluster that is most
        like the old one. `progress` is told what is being done and how far it is.

        Raises CollectionError for options that do not fit, k above the number of
        pictures, an unknown column, or without scikit-learn; `errors.Stopped` when
        `stop()` turns true, with the earlier clusters left as they were.
        """
        from .explore.clusters import make_clusters

        collection, conn = self._open()
        with db.explained(self.database):
            return make_clusters(
                conn,
                collection,
                method=method,
                k=k,
                min_size=min_size,
                seed=seed,
                label=label,
                say=progress or silent,
                stop=stop,
            )

    def duplicates(
        self,
        threshold: float | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Duplicates:
        """Find groups of duplicates and store them in place of earlier ones.

        `threshold` is the least cosine of look-alikes, measured by default: see
        `explore/duplicates.py`. What was decided about pictures stays. Raises
        CollectionError for a threshold that is no cosine, or without embeddings;
        `errors.Stopped` when `stop()` turns true: then the earlier groups stay.
        """
        from .explore.duplicates import find_duplicates

        collection, conn = self._open()
        with db.explained(self.database):
            return find_duplicates(
                conn,
                collection,
                threshold=threshold,
                encoder=self._encoder_if_here,
                say=progress or silent,
                stop=stop,
            )

    def export_decisions(self, file: str | Path, to: str | Path | None = None) -> Written:
        """Write what was decided about duplicates: see `explore/marked.py`.

        `file` ends in .csv, .json or .sh: a script that moves what is marked to the
        folder `to`. Raises CollectionError, also when nothing was decided.
        """
        from .explore.marked import export_decisions

        collection, conn = self._open()
        folder = None if to is None else Path(os.path.expanduser(to))
        return export_decisions(conn, collection, Path(os.path.expanduser(file)), folder)

    def move(
        self,
        to: str,
        *,
        keep: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Moved:
        """Bring the vectors to the store at the URL `to`, or into this file: "sqlite".

        They are compared there before the collection points to them; only then the old
        ones are dropped, unless they are to be kept. Cut off, the same call goes on.
        Raises CollectionError when they are there already, or some are missing; StoreError
        when a store cannot be used; `errors.Stopped` when `stop()` turns true.
        """
        from .stores.moving import move

        collection, conn = self._open()
        url = "" if to == "sqlite" else store_url(to)
        if url:
            self.vouched.store(url)
        with db.explained(self.database):
            return move(
                conn,
                collection,
                url,
                keep=keep,
                say=progress or silent,
                stop=stop,
            )

    def reconcile(
        self,
        *,
        mend: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Reconciled:
        """Compare what this file and the collection's store have, by id and SHA-256.

        To `mend` sends what waits, takes out of the store what is no picture's here, and
        takes pictures off that have no vector there: the next `embed` makes them again.
        Raises CollectionError for a collection without a store, StoreError when that
        cannot be used; `errors.Stopped` when `stop()` turns true.
        """
        from .stores.reconciling import reconcile

        collection, conn = self._find()
        with db.explained(self.database):
            return reconcile(
                conn,
                collection,
                mend=mend,
                say=progress or silent,
                stop=stop,
            )

    def status(self) -> Status:
        """What the collection holds. Raises CollectionError when there is none."""
        collection, conn = self._find()
        return collection_status(conn, collection)

    def make_default(self) -> None:
        """Have this collection used wherever none is named. Raises CollectionError."""
        collection, conn = self._find()
        with db.explained(self.database):
            db.prefer(conn, collection)

    def remove(self) -> None:
        """Drop the collection. The table of pictures stays as it is.

        What stores have of it goes, too; where one cannot be reached a warning says what
        is left there.
        """
        collection, conn = self._find()
        with db.explained(self.database):
            places = places_of(conn, collection)
            db.drop_collection(conn, collection)
            for left in clear_places(conn, collection, places):
                warnings.warn(left, stacklevel=2)

    # Inside

    def _store(self, before: db.Collection | None, asked: str | None, force: bool) -> str:
        """Where the vectors go: the URL of a store, or "" for this file.

        Who names a store vouches for it. Raises CollectionError when a collection that is
        not made anew is in another place already.
        """
        if asked is None:
            return before.store if before else ""
        url = store_url(asked)
        if before is not None and before.store != url and not force:
            raise CollectionError(
                f"The vectors of {self.table!r} are in {before.store or self.database}: to "
                f"have them in {url}, use datasette image-similarity move"
            )
        self.vouched.store(url)
        return url

    def _find(self) -> tuple[db.Collection, sqlite3.Connection]:
        conn = self.connect()
        return db.find_collection(conn, self.table, self.name), conn

    def _open(self) -> tuple[db.Collection, sqlite3.Connection]:
        """As `_find()`, for a collection whose vectors can be asked."""
        collection, conn = self._find()
        db.need_vectors(conn, collection)
        return collection, conn

    def _encoder_if_here(self) -> Encoder | None:
        """The collection's encoder; None where it would have to be downloaded."""
        try:
            return self.load_encoder(download=False)
        except EncoderError:
            return None

    def _existing(self) -> db.Collection | None:
        if not self.database.exists():
            return None
        return db.collection_or_none(self.connect(), self.table, self.name)

    def _check_source(
        self,
        files: list[Path | BucketRoot],
        rows: list[dict[str, object]],
        mode: tuple[str, str],
        copy_of: str | Path | None,
    ) -> None:
        """Raises CollectionError for what is plainly wrong, before an encoder is loaded."""
        source, column = mode
        for file in files:
            if isinstance(file, Path) and not os.path.exists(file):
                raise CollectionError(f"{file} does not exist")
        if source == "folder":
            return
        if not rows:
            with self._table_from(copy_of) as conn:
                sources.require_column(db.source_table(conn, self.table), column)
            return
        columns = [*dict.fromkeys(name for row in rows for name in row)]
        if self.database.exists() and db.table_exists(self.connect(), self.table):
            columns += db.source_table(self.connect(), self.table).columns
        if column.lower() not in map(str.lower, columns):
            raise CollectionError(
                f"There is no column {column!r}; there are {', '.join(columns)}"
            )

    @contextmanager
    def _table_from(self, copy_of: str | Path | None) -> Iterator[sqlite3.Connection]:
        """A connection to the database that has the table, as yet."""
        if copy_of is None:
            yield self.connect()
        else:
            with closing(db.connect(copy_of)) as conn:
                yield conn

    def _copy_from(self, database: str | Path, before: db.Collection | None) -> None:
        """Make the table here an exact copy of that of another database.

        What was embedded stays. Raises CollectionError for a table here that is no copy.
        """
        conn = self.connect()
        if Path(database).resolve() == self.database.resolve():
            raise CollectionError("The output must be another file than the database")
        db.copy_table(conn, database, self.table, replace=before is not None)

    @contextmanager
    def _no_empty_file(self) -> Iterator[None]:
        """A database file that is made here goes again where no collection came of it."""
        existed = self.database.exists()
        try:
            yield
        except BaseException:
            if not existed and self._holds_nothing():
                self.close()
                self.database.unlink(missing_ok=True)
            raise

    def _holds_nothing(self) -> bool:
        if self._conn is None:  # it could not be opened
            return self.database.exists() and self.database.stat().st_size == 0
        with suppress(sqlite3.Error):
            return self._existing() is None
        return False

    def _items(self, pks: Any) -> dict[int, float]:
        """Weights by item: of a key, a list of keys, or a dictionary of weights by key.

        Raises CollectionError.
        """
        collection, conn = self._open()
        source = db.source_of(conn, collection)
        weights = {}
        for pk, weight in _weights(pks, len(source.key_columns) > 1):
            parts = list(pk) if isinstance(pk, (tuple, list)) else [pk]
            key = source.find(conn, parts)
            if key is None:
                of = ",".join(source.key_columns)
                raise CollectionError(
                    f"{self.table!r} has no row with the key {db.key_in_words(pk)} ({of})"
                )
            if not 0 < weight < math.inf:
                raise CollectionError(
                    f"The weight of {db.key_in_words(pk)} must be above 0, not {weight}"
                )
            weights[query.items_of(conn, collection, [key])[0]] = weight
        return weights

    def _encode_texts(self, texts: words.Texts | None) -> list[tuple[bytes, float]]:
        """Texts as vectors with weights. Raises TextError, EncoderError."""
        if texts is None:
            return []
        collection, conn = self._open()
        words.require_words(conn, collection)
        weights = words.weights_of(texts)
        vectors = words.encoded(self.load_encoder(), list(weights))
        return list(zip(vectors, weights.values(), strict=True))

    def _encode_crop(self, key: db.Key, crop: Crop) -> bytes:
        """A part of a row's picture, embedded. Raises ImageError, EncoderError."""
        collection, conn = self._open()
        source = db.source_of(conn, collection)
        kept = sources.kept_picture(conn, collection, source, key)
        if kept is None:
            row = db.key_in_words(source.parts(key))
            raise CollectionError(f"Row {row} of {self.table!r} has changed: embed it")
        try:
            if sources.is_in_row(collection, kept.path):
                data = sources.read_blob(conn, source, collection.column, kept.pk)
            else:
                roots = trust.trusted_roots(self.database)
                limit = LOCAL_FILES.max_bytes
                with sources.Reader() as reader:
                    data = reader.read_noted(roots, kept.root, kept.path, limit)
        except ImageError as error:
            if kept.thumbnail is None:
                raise
            warnings.warn(
                f"The crop is of the stored thumbnail: {kept.path} {error}", stacklevel=3
            )
            data = kept.thumbnail
        return self.encode(data, crop=crop)

    def _key_of(self, item: int) -> db.Key:
        return db.item_key(self.connect(), item)

    def _near_duplicates(self) -> float:
        collection, conn = self._open()
        return near_duplicates(conn, collection, random_pairs(conn, collection))

    def _ask(self, asked: Query, where: str | None) -> list[Hit]:
        collection, conn = self._open()
        asked = replace(asked, filter=Filter(where) if where else None)
        try:
            return query.search(conn, collection, asked, self._cache).hits
        except (sqlite3.Error, sqlite3.Warning) as error:
            if not where:
                raise
            raise CollectionError(f"The condition {where!r}: {error}") from None

    def _choose_encoder(
        self,
        before: db.Collection | None,
        options: EncoderOptions,
        metric: str | None,
        force: bool,
    ) -> tuple[EncoderSpec, Callable[[], Encoder] | None]:
        """The encoder's spec, and how to load it (None when it is loaded already).

        A new collection loads it now, so that nothing is touched when it can't be; one
        that exists only when there is something to embed.
        """
        if before is not None and not force:
            _check_same_length(before, options.dims, self.database)
            options = replace(options, dims=None)
        asked = replace(options, device="auto", precision="auto") != EncoderOptions()
        if before is not None and not asked and metric in (None, before.metric):
            spec = EncoderSpec.from_json(before.encoder)
            loaded = self._encoder
            if (
                loaded is not None
                and loaded.spec.fingerprint == spec.fingerprint
                and options.precision in ("auto", loaded.precision.split()[0])
            ):
                return spec, None
            self._encoder = None
            return spec, lambda: self.load_encoder(options.device, options.precision)
        loaded = _load(before, options)
        if before is not None and options.dims is None:
            loaded = self._with_transform(before, loaded)
        self._encoder = loaded
        if loaded.spec.weights_sha256 and options.weights:
            file = Path(os.path.expanduser(options.weights))
            if file.exists():  # a file, or a folder of open_clip's
                self.vouched.weights(loaded.spec.weights_sha256, file)
        if before is not None and not force:
            if before.fingerprint != loaded.spec.fingerprint:
                raise CollectionError(
                    f"{self.table!r} was embedded with "
                    f"{EncoderSpec.from_json(before.encoder)}, not {loaded.spec}: vectors "
                    "of two encoders cannot be compared. Leave the encoder's options out "
                    "to go on with it, --force to embed everything again, or --name to "
                    "keep both"
                )
            if metric not in (None, before.metric):
                raise CollectionError(
                    f"{self.table!r} was embedded for the metric {before.metric}: --force "
                    "embeds everything again, --name keeps both"
                )
        return loaded.spec, None

    def _with_transform(self, before: db.Collection, loaded: Encoder) -> Encoder:
        """With what the collection's vectors went through, when they come from this one."""
        spec = EncoderSpec.from_json(before.encoder)
        same = loaded.spec.fingerprint == spec.backbone.fingerprint
        if spec.transform is None or not same:
            return loaded
        from .encoders.transform import TransformedEncoder

        transform = _transform(self.connect(), before)
        return loaded if transform is None else TransformedEncoder(loaded, transform)

    def _describe_encoder(self) -> str:
        encoder = self._encoder
        return f"{encoder.spec} on {encoder.device}, {encoder.precision}"


def _weights(pks: Any, compound: bool) -> list[tuple[Any, float]]:
    """(key, weight) of a key, a list of keys, or a dictionary of weights by key."""
    if isinstance(pks, Mapping):
        return list(pks.items())
    if not isinstance(pks, (list, tuple)):
        return [(pks, 1.0)]
    one = compound and pks and not any(isinstance(part, (list, tuple)) for part in pks)
    return [(pks, 1.0)] if one else [(pk, 1.0) for pk in pks]


def _transform(conn: sqlite3.Connection, collection: db.Collection) -> Transform | None:
    """What a collection's vectors went through. Raises EncoderError."""
    from .learning.stored import stored_transform

    return stored_transform(conn, collection)


def _check_length(length: int, dims: int | None) -> None:
    """Raise CollectionError for vectors that cannot be had, or not be stored."""
    if dims is not None:
        from .learning.pca import check_dims

        check_dims(dims, length)
    if (dims or length) > db.MOST_DIMENSIONS:
        raise CollectionError(
            f"Vectors of {dims or length:,} dimensions cannot be stored, only up to "
            f"{db.MOST_DIMENSIONS:,}: --dims 256, say, stores them projected to so many"
        )


def _check_same_length(before: db.Collection, dims: int | None, database: Path) -> None:
    """Raise CollectionError when other dimensions are asked for than a collection has."""
    if dims in (None, before.dimensions):
        return
    smaller = ""
    if dims < before.dimensions:
        words = ["reduce", str(database), before.table, "--dims", str(dims)]
        words += ["--name", before.name]
        command = shell_line("datasette", "image-similarity", *words)
        smaller = f"To make smaller ones of them: {command}. "
    raise CollectionError(
        f"The vectors of {before.table!r} have {before.dimensions:,} dimensions, not "
        f"{dims:,}. {smaller}--force embeds everything again, --name keeps both"
    )


def _load(before: db.Collection | None, options: EncoderOptions) -> Encoder:
    """Load the encoder asked for; what was not said is as in the collection before."""
    spec = EncoderSpec.from_json(before.encoder) if before else None
    model = options.model or (spec.model if spec else DEFAULT_MODEL)
    weights, pooling, size = options.weights, options.pooling, options.size
    fit = options.fit or (spec.input.fit if spec else None) or "squash"
    if spec is not None and model == spec.model:
        pooling = pooling or spec.pooling
        if weights is None:
            size = size or spec.input.size  # other weights may be for another size
            noted = trust.weights_file(spec.weights_sha256)
            weights = str(noted) if noted else spec.weights
    return load_encoder(
        model,
        weights=weights,
        pooling=pooling,
        fit=fit,
        size=size,
        device=options.device,
        precision=options.precision,
    )


def _check_columns(
    path_column: str | None,
    url_column: str | None,
    blob_column: str | None,
    rows: list[dict[str, object]],
) -> None:
    """Raise CollectionError for more columns than one, or rows without any."""
    columns = list(filter(None, (path_column, url_column, blob_column)))
    if len(columns) > 1:
        raise CollectionError(
            "Name one column: of paths, of addresses or of pictures as BLOBs"
        )
    if rows and not columns:
        raise CollectionError("Rows need a column of paths, addresses or BLOBs")


def _check_buckets(
    reader: sources.Reader, files: list[Path | BucketRoot], top: Root | None
) -> None:
    """Raise CollectionError for a bucket that was named and is not to be had."""
    for bucket in (*files, top):
        if isinstance(bucket, BucketRoot):
            reader.buckets.check(bucket, listing=bucket is not top)


def _pipeline(
    engine: RayEngine | None, asked: EncoderOptions
) -> Callable[..., Iterator[list[Outcome]]]:
    """What makes the batches: this process, or the actors of a cluster."""
    if engine is None:
        return embed_pictures
    at_work = {"device": asked.device, "precision": asked.precision}
    return partial(engine.embed_pictures, **at_work)


def _root(root: str | Path | None, url_column: str | None) -> Root | None:
    """The root that was named, if one was. Raises CollectionError."""
    if url_column and root:
        raise CollectionError("Addresses are relative to no root: leave out --root")
    if url_column:
        return WebRoot()
    top = named(root) if root else None
    return Path(os.path.abspath(top)) if isinstance(top, Path) else top


def _files_or_rows(
    source: Any,
) -> tuple[list[Path | BucketRoot], CsvTable | list[dict[str, object]]]:
    if source is None:
        return [], []
    if isinstance(source, CsvTable):
        return [], source
    kinds = (str, Path, BucketRoot)
    given = [source] if isinstance(source, kinds) else list(source)
    if not given:
        raise CollectionError("There is nothing to embed: neither paths nor rows")
    if all(isinstance(one, kinds) for one in given):
        return [named(one) for one in given], []
    if all(isinstance(one, Mapping) for one in given):
        return [], [dict(one) for one in given]
    raise CollectionError("The source must be paths or rows, not a mixture")


def _some(
    pictures: Iterator[sources.Picture], files: list[Path | BucketRoot], skipped: Skipped
) -> Iterator[sources.Picture]:
    """The pictures. Raises CollectionError when files were named and there are none."""
    first = next(pictures, None)
    if files and first is None:
        links = skipped[LINKS] or skipped[LINKED_FILES]
        follow = ". --follow-links follows links" if links else ""
        there = f"skipped {skipped}{follow}" if skipped else "the drive may not be mounted"
        raise CollectionError(
            f"No pictures in {', '.join(map(str, files))}: {there}. Looked for files that "
            f"end in {' '.join(picture_suffixes())}"
        )
    return chain([] if first is None else [first], pictures)


def _counted(
    pictures: Iterator[sources.Picture],
    progress: Callable[[Progress], None] | None,
    started: float,
) -> Iterator[sources.Picture]:
    """The pictures; it is told now and then how many have been listed."""
    for number, picture in enumerate(pictures, 1):
        yield picture
        if progress is not None and number % LISTED == 0:
            seconds = time.perf_counter() - started
            progress(Progress(f"Listed {number:,} pictures", 0, 0, 0, seconds))


def _reporter(
    progress: Callable[[Progress], None] | None,
    describe: Callable[[], str],
    started: float,
) -> Callable[[int, int, int], None]:
    """What a run calls with the numbers of pictures done, there and failed."""

    def report(done: int, total: int, failed: int) -> None:
        if progress is not None:
            seconds = time.perf_counter() - started
            progress(Progress(describe(), done, total, failed, seconds))

    return report


def _mode(
    files: list[Path | BucketRoot],
    path_column: str | None,
    blob_column: str | None,
    before: db.Collection | None,
    table: str,
    known: list[db.Collection],
) -> tuple[str, str]:
    """Where pictures come from: ("folder" | "path" | "blob", column)."""
    if path_column:
        asked = ("path", path_column)
    elif blob_column:
        asked = ("blob", blob_column)
    elif files:
        asked = ("folder", "path")
    elif before is not None:
        return before.source, before.column
    else:
        raise CollectionError(
            f"Say where the pictures of {table!r} are: name folders or files, "
            "--path-column, --url-column or --blob-column"
            + "".join(
                f", or --table {one}" for one in dict.fromkeys(c.table for c in known)
            )
        )
    if before is not None and (before.source, before.column) != asked:
        raise CollectionError(
            f"{table!r} was embedded from {_from(before.source, before.column)}, not "
            f"{_from(*asked)}: choose another table, or --name to keep both"
        )
    return asked


def _from(source: str, column: str) -> str:
    return "folders" if source == "folder" else f"its column {column!r}"


def _image_bytes(image: Any) -> tuple[bytes, Limits]:
    if isinstance(image, (str, Path)):
        file = Path(os.path.expanduser(image))
        if not file.is_file():
            raise ImageError(f"{image} is not a file")
        return sources.read_file(file, LOCAL_FILES.max_bytes), LOCAL_FILES
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image), UPLOADS
    import io

    lossless = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    buffer = io.BytesIO()
    picture = image if lossless else image.convert("RGB")
    picture.save(buffer, "PNG", compress_level=1, exif=image.getexif())
    return buffer.getvalue(), LOCAL_FILES


def collection_status(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    counted: bool = True,
    folders: bool = True,
) -> Status:
    """What a collection holds, by counting; or, not `counted`, what takes no time. With
    `folders` the disk is asked for them, which may take long where a server is away."""
    embedded = db.item_count(conn, collection)
    counts = _counts(conn, collection, embedded) if counted else _Counts()
    failures, updated_at = conn.execute(
        "select (select count(*) from _image_similarity_failures f "
        "where f.collection_id = c.id), updated_at "
        "from _image_similarity_collections c where id = ?",
        (collection.id,),
    ).fetchone()
    return Status(
        name=collection.name,
        table=collection.table,
        encoder=str(EncoderSpec.from_json(collection.encoder)),
        dimensions=collection.dimensions,
        metric=collection.metric,
        embedded=embedded,
        failures=failures,
        missing=db.missing_count(conn, collection),
        updated_at=updated_at,
        index=index_status(conn, collection),
        store_index=store_index(conn, collection),
        map=map_status(conn, collection) if counted else None,
        default=is_default(conn, collection),
        store=collection.store,
        unsent=unsent_size(conn, collection)[0],
        away=away(conn, collection) if folders else {},
        **counts._asdict(),
    )


class _Counts(NamedTuple):
    """What of a `Status` takes seconds where there are a million pictures."""

    stale: int | None = None
    noted: int | None = None
    notes: Sequence[Note] = ()
    thumbnails: int | None = None
    bytes: int | None = None
    behind: int | None = None


def _counts(conn: sqlite3.Connection, collection: db.Collection, embedded: int) -> _Counts:
    try:
        source = db.source_of(conn, collection)
        sql = f"select count(*) {db.live_sql(collection, source)}"
        live = conn.execute(sql).fetchone()[0]
    except CollectionError:  # the table was renamed or dropped
        live = 0
    thumbnails, size = conn.execute(
        "select count(*), coalesce(sum(length(webp)), 0) from _image_similarity_thumbnails "
        "where id in (select id from _image_similarity_items where collection_id = ?)",
        (collection.id,),
    ).fetchone()
    vectors = embedded * collection.dimensions * 4
    if collection.store:
        vectors = unsent_size(conn, collection)[1]
    noted, notes = _notes(conn, collection)
    return _Counts(
        stale=embedded - live,
        noted=noted,
        notes=notes,
        thumbnails=thumbnails,
        bytes=vectors + size,
        behind=lacking(conn, collection),
    )


def _notes(conn: sqlite3.Connection, collection: db.Collection) -> tuple[int, list[Note]]:
    """How many pictures have a note, and what the first few say."""
    if not db.is_current(conn, since=7):
        return 0, []
    noted = "from _image_similarity_items where collection_id = ? and note is not null"
    (count,) = conn.execute(f"select count(*) {noted}", (collection.id,)).fetchone()
    rows = conn.execute(
        "select substr(coalesce(path, pk), 1, 1000), substr(note, 1, 200) "
        f"{noted} order by id limit {MAX_NOTES}",
        (collection.id,),
    )
    return count, [Note(str(picture), str(note)) for picture, note in rows]
