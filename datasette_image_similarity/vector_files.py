"""A collection's vectors in a Parquet file, for other programs and other computers.

A row is a picture: `id` ("database/table/key", as in stores), `key`, `vector` as a
fixed-size list of float32, `sha256`, and what its file was like. Where the vectors come
from is in the file's metadata under `image_similarity`, as JSON: see `Record`.
`vector_export.py` writes such files, `vector_import.py` takes them in. A file may come from
anyone: nothing in it is believed before it was checked.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import database as db
from .encoders import EncoderSpec
from .encoders.transform import Transform
from .errors import CollectionError, EncoderError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

KEY = b"image_similarity"
FORMAT = 1
TRANSFORM_BYTES = 48_000_000  # more does not fit into a file's metadata
GROUP_BYTES = 1 << 29  # a stranger's group of rows that would be bigger is not read
BATCH = 1000  # rows read at once
OPTIONAL = ("root", "path", "mtime_ns")
LONGEST = 65_535  # characters of an id, a folder, a path


@dataclass(frozen=True)
class Record:
    """Where the vectors of a file come from, as JSON in its metadata.

    `ids` is what every id begins with. `encoder` is `EncoderSpec` as JSON; `transform` are
    the rows of `_image_similarity_transforms` behind it, with their matrices in base64.
    """

    format: int
    package: str  # version of this package
    exported_at: str
    count: int
    database: str
    table: str
    collection: str
    source: str  # "folder", "path" or "blob"
    column: str
    thumbnails: bool
    ids: str
    encoder: str
    fingerprint: str
    dimensions: int
    metric: str
    transform: list[list[Any]]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """The record in a file's metadata. Raises CollectionError, EncoderError."""
        try:
            fields = json.loads(text)
            json.dumps(fields, ensure_ascii=False).encode()  # or there are half characters
        except (ValueError, RecursionError):
            raise CollectionError("its metadata is not JSON") from None
        if not isinstance(fields, dict) or fields.keys() != cls.__annotations__.keys():
            raise CollectionError("its metadata has other fields than a collection's")
        if fields["format"] != FORMAT:
            raise CollectionError(
                f"it has format {fields['format']!r}, and this version knows {FORMAT}"
            )
        record = cls(**fields)
        record.check()
        return record

    def check(self) -> None:
        """Raise CollectionError or EncoderError unless everything fits together."""
        texts = (self.database, self.table, self.collection, self.column, self.ids)
        texts += (self.encoder, self.fingerprint, self.package, self.exported_at)
        fits = (
            all(isinstance(text, str) and "\0" not in text for text in texts)
            and all((self.table, self.collection, self.column))
            and self.source in ("folder", "path", "blob")
            and self.metric in db.DISTANCES
            and isinstance(self.thumbnails, bool)
            and all(type(n) is int and n >= 0 for n in (self.count, self.dimensions))
            and isinstance(self.transform, list)
        )
        if not fits or not 0 < self.dimensions <= db.MOST_DIMENSIONS:
            raise CollectionError("its metadata is not that of a collection")
        spec = EncoderSpec.from_json(self.encoder)
        if spec.fingerprint != self.fingerprint:
            raise CollectionError("its fingerprint is not that of the encoder it names")
        transform = self._transform(spec)
        if transform is not None and transform.dimensions != self.dimensions:
            raise CollectionError("its vectors are not as long as what made them gives")

    def _transform(self, spec: EncoderSpec) -> Transform | None:
        if spec.transform is None and not self.transform:
            return None
        if spec.transform is None:
            raise CollectionError("it has a projection that its encoder does not know of")
        try:
            return Transform.from_rows(self.transform_rows(), spec)
        except EncoderError:
            raise CollectionError("what its vectors went through is damaged") from None

    def transform_rows(self) -> list[tuple[Any, ...]]:
        """Rows as `database.transform_rows()` gives them."""
        rows = []
        for row in self.transform:
            if not isinstance(row, list) or len(row) != 7:
                raise CollectionError("what its vectors went through is damaged")
            try:
                blobs = [base64.b64decode(text, validate=True) for text in row[5:]]
            except (TypeError, ValueError, binascii.Error):
                raise CollectionError("what its vectors went through is damaged") from None
            rows.append((*row[:5], *blobs))
        return rows


def packed_transform(rows: list[Any]) -> list[list[Any]]:
    """Rows of a transform for `Record.transform`. Raises CollectionError."""
    if sum(len(row["components"]) for row in rows) > TRANSFORM_BYTES:
        raise CollectionError(
            "What the vectors went through is too big for the metadata of a Parquet file"
        )
    return [
        [*row[:5], *(base64.b64encode(blob).decode("ascii") for blob in row[5:])]
        for row in map(tuple, rows)
    ]


def schema(dimensions: int, *, numbers: bool) -> pa.Schema:
    """The columns. The key is a number where all are; compound ones are JSON arrays."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("key", pa.int64() if numbers else pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("root", pa.string()),
            pa.field("path", pa.string()),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64()),
            pa.field("width", pa.int64(), nullable=False),
            pa.field("height", pa.int64(), nullable=False),
        ]
    )


class Picture(NamedTuple):
    """A row of a file, checked. `vector` is float32 bytes."""

    id: str
    vector: bytes
    sha256: str
    root: str | None
    path: str | None
    size: int
    mtime_ns: int | None
    width: int
    height: int


class VectorFile:
    """A file of vectors, opened for reading. Use it in a `with` statement.

    Raises CollectionError for one that is not there, damaged, or of something else.
    """

    def __init__(self, path: Path) -> None:
        pq = needs_pyarrow()
        self.path = path
        with self._explained():
            self._file: pq.ParquetFile = pq.ParquetFile(path, pre_buffer=False)
        try:
            with self._explained():
                self.record = self._read_record()
                self._check_columns()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VectorFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (CollectionError, EncoderError) as error:
            raise CollectionError(f"{self.path} cannot be used: {error}") from None
        except FileNotFoundError:
            raise CollectionError(f"{self.path} does not exist") from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said = str(error).partition("\n")[0]
            raise CollectionError(
                f"{self.path} is damaged, or no Parquet file: {said}"
            ) from None

    def _read_record(self) -> Record:
        told = self._file.metadata.metadata or {}
        if KEY not in told:
            raise CollectionError(
                "it says nothing about an encoder: only what export --vectors wrote can be "
                "taken in"
            )
        record = Record.from_json(told[KEY])
        if self._file.metadata.num_rows != record.count:
            raise CollectionError(
                f"it has {self._file.metadata.num_rows:,} rows, not {record.count:,}"
            )
        return record

    def _check_columns(self) -> None:
        import pyarrow as pa

        there = self._file.schema_arrow
        for field in schema(self.record.dimensions, numbers=False):
            if field.name == "key":
                continue  # for people: the id has it
            if there.get_field_index(field.name) < 0:
                raise CollectionError(f"it has no column {field.name!r}, or two of them")
            kind = there.field(field.name).type
            if field.name == "vector" and pa.types.is_list(kind):
                kind = pa.list_(kind.value_type, self.record.dimensions)
            if kind != field.type:
                raise CollectionError(f"its column {field.name!r} is {kind}")
        metadata = self._file.metadata
        sizes = (metadata.row_group(i).total_byte_size for i in range(self.groups))
        if any(size > GROUP_BYTES for size in sizes):
            raise CollectionError(
                f"a group of its rows is bigger than {GROUP_BYTES / 1e6:,.0f} MB"
            )

    @property
    def groups(self) -> int:
        return self._file.metadata.num_row_groups

    def pictures(self) -> Iterator[list[Picture]]:
        """All rows, some after the others. Raises CollectionError for one that is wrong."""
        columns = ["id", "vector", "sha256", "root", "path", "size", "mtime_ns"]
        columns += ["width", "height"]
        batches = self._file.iter_batches(
            BATCH, columns=columns, use_threads=False, use_pandas_metadata=False
        )
        while True:
            with self._explained():
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
                found = self._checked(batch)
            yield found

    def _checked(self, batch: pa.RecordBatch) -> list[Picture]:
        for name in batch.schema.names:
            if name not in OPTIONAL and batch.column(name).null_count:
                raise CollectionError(f"its column {name!r} has gaps")
        vectors = self._vectors(batch)
        rows = batch.drop_columns(["vector"]).to_pylist()
        return [
            self._picture(row, vector.tobytes())
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def _vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        """The vectors of a batch: float32 (n, d), usable each."""
        import pyarrow as pa

        wanted = pa.list_(pa.float32(), self.record.dimensions)
        lists = batch.column("vector").cast(wanted)
        numbers = lists.flatten()
        if numbers.null_count:
            raise CollectionError("a vector in it has gaps")
        matrix = numbers.to_numpy().reshape(-1, self.record.dimensions).astype("<f4")
        lengths = np.linalg.norm(matrix.astype(np.float64), axis=1)
        right = np.isfinite(lengths) & (lengths > 0)
        if self.record.metric == "cosine":
            right &= np.abs(lengths - 1) < 1e-3
        if not right.all():
            id = batch.column("id")[int(np.argmin(right))].as_py()
            raise CollectionError(
                f"the vector of {id} is not finite, or its length is not 1"
                if self.record.metric == "cosine"
                else f"the vector of {id} is not finite, or zero"
            )
        return matrix

    def _picture(self, row: dict[str, Any], vector: bytes) -> Picture:
        picture = Picture(vector=vector, **row)
        numbers = (picture.size, picture.width, picture.height)
        texts = (picture.id, picture.root or "", picture.path or "")
        if (
            not picture.id.startswith(f"{self.record.ids}/")
            or any(len(text) > LONGEST for text in texts)
            or picture.id.count("/") != 2
            or not re.fullmatch("[0-9a-f]{64}", picture.sha256)
            or not all(0 <= number < 2**48 for number in numbers)
            or any("\0" in text for text in (picture.root or "", picture.path or ""))
        ):
            raise CollectionError(f"the row {picture.id[:200]!r} is no picture's")
        return picture


def needs_pyarrow() -> Any:
    """The module `pyarrow.parquet`. Raises CollectionError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise CollectionError(
            "Parquet files need pyarrow: pip install 'datasette-image-similarity[parquet]'"
        ) from None
    return pyarrow.parquet
