"""Pictures that mean no good: damaged files of every format that Pillow reads, bombs, files
that are two things at once. Each must be decoded, or refused in words, in time and within
the child's memory; a good picture must come out right after them.

They come in where strangers' pictures do: through the decoders as `embed` and as uploads
use them, in a folder, as BLOBs, behind addresses, and as uploads to a real Datasette.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from datasette_image_similarity.encoders import load_encoder
from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.images import (
    LOCAL_FILES,
    UPLOADS,
    Decoded,
    Decoder,
    DecoderPool,
    Limits,
    Request,
)

from . import picture_bombs, picture_seeds
from .picture_seeds import SECRET, SIZE, file_of, photo
from .picture_server import (
    ADD,
    SEARCH,
    Server,
    all_at_once,
    slow_and_gone,
    what_is_wrong_with,
)
from .report import Report, options

ENCODER = load_encoder("hog")
WANTED = Request(input=ENCODER.input, thumbnail=320)  # as `embed` and uploads ask
SQUARE = (ENCODER.input.size, ENCODER.input.size, 3)
LARGE = Request(picture=1600, thumbnail=320)  # as pages ask
READ = {
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "AVIF",
    "HEIC",
    "TIFF",
    "BMP",
    "DIB",
    "PPM",
    "JPEG2000",
    "JXL",
    "RAW",
}
BATCH = 100
GRACE = 5  # seconds: a child that was killed starts again, on a busy machine
Say = Callable[[str], None]


# Damage

MAGICS = [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"BM"]
MAGICS += [
    b"RIFF\0\0\0\0WEBP",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"%!PS-Adobe",
    b"8BPS\0\1",
    b"P6\n",
]
WILD = (0, 1, 255, 65_535, 7000, 50_000, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """The file with one or more things wrong, drawn from `chance`."""
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        data = chance.choice(MUTATIONS)(data, chance, others)
        data = data or b"\0"
    if data.startswith(b"\x89PNG") and chance.random() < 0.7:
        data = checked(data)
    return data[:200_000]


def flips(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 3, 20))):
        # Headers decide most, and are at the beginning.
        end = chance.choice((64, 512, len(out)))
        out[chance.randrange(min(end, len(out)))] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return data[: chance.randrange(len(data)) + 1]


def inserted(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    at = chance.randrange(len(data))
    more = chance.choice(
        (chance.randbytes(30), data[at : at + 300], bytes(500), b"\xff" * 9)
    )
    return data[:at] + more + data[at:]


def removed(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.choice((1, 4, 60)) :]


def wild_number(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    at = chance.randrange(min(len(data), chance.choice((64, 600, len(data)))))
    form = chance.choice((">H", "<H", ">I", "<I"))
    value = chance.choice(WILD) & (0xFFFF if form.endswith("H") else 0xFFFFFFFF)
    lie = struct.pack(form, value)
    return data[:at] + lie + data[at + len(lie) :]


def other_size(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """The width or the height, wherever it stands, as another."""
    form = chance.choice((">H", "<H", ">I", "<I"))
    true = struct.pack(form, chance.choice(SIZE))
    value = chance.choice(WILD) & (0xFFFF if form.endswith("H") else 0xFFFFFFFF)
    head, tail = data[:4000], data[4000:]
    return head.replace(true, struct.pack(form, value), chance.choice((1, 9))) + tail


def parts_of(data: bytes) -> list[bytes]:
    """The chunks, segments or boxes of a file, or equal pieces of it."""
    cuts = [0]
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 8 < len(data):
            cuts.append(at)
            at += 12 + struct.unpack(">I", data[at : at + 4])[0]
    elif data.startswith(b"\xff\xd8"):
        cuts += [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    elif data.startswith(b"RIFF"):
        cuts += [found.start() for found in re.finditer(rb"[A-Z8]{4}|VP8 |XMP ", data)]
    elif data[4:8] in (b"ftyp", b"jP  "):
        cuts += [max(0, m.start() - 4) for m in re.finditer(rb"[a-z]{4}|jp2c", data)]
    elif data[:2] in (b"II", b"MM"):
        form = "<" if data[:2] == b"II" else ">"
        start = struct.unpack(form + "I", data[4:8])[0] if len(data) > 8 else 8
        cuts += [start + 2 + 12 * entry for entry in range(20)]
    else:
        cuts += list(range(0, len(data), max(8, len(data) // 20)))
    cuts = sorted({at for at in cuts if at < len(data)})
    return [data[a:b] for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True)]


def reordered(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """A part removed, doubled, many times there, or in another's place."""
    parts = parts_of(data)
    a, b = chance.randrange(len(parts)), chance.randrange(len(parts))
    match chance.randrange(4):
        case 0:
            del parts[a]
        case 1:
            parts.insert(b, parts[a])
        case 2:
            parts[a:a] = [parts[a]] * 200
        case 3:
            parts[a], parts[b] = parts[b], parts[a]
    return b"".join(parts)


def length_lie(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Another length where a part begins."""
    parts = parts_of(data)
    at = chance.randrange(len(parts))
    form = chance.choice((">H", ">I", "<I"))
    lie = struct.pack(form, chance.choice(WILD) & (0xFFFF if form == ">H" else 0xFFFFFFFF))
    skip = {b"\xff\xd8": 2, b"RI": 4, b"II": 4, b"MM": 4}.get(data[:2], 0)
    parts[at] = parts[at][:skip] + lie + parts[at][skip + len(lie) :]
    return b"".join(parts)


def swapped(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """The other endianness, of the mark alone or of some numbers."""
    if data[:2] in (b"II", b"MM") and chance.random() < 0.5:
        return {b"II": b"MM", b"MM": b"II"}[data[:2]] + data[2:]
    at, size = chance.randrange(len(data)), chance.choice((2, 4))
    out = bytearray(data)
    for start in range(at, min(len(out) - size, at + 60), size):
        out[start : start + size] = out[start : start + size][::-1]
    return bytes(out)


def spliced(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    other = chance.choice(others)
    at, there = chance.randrange(len(data)), chance.randrange(len(other))
    return chance.choice((data[:at] + other[there:], data + other, data[:at] + other))


def disguised(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    magic = chance.choice(MAGICS)
    return magic + data[len(magic) * chance.randrange(2) :]


MUTATIONS = [flips, flips, cut, inserted, removed, wild_number, other_size, reordered]
MUTATIONS += [length_lie, swapped, spliced, disguised]


def checked(png: bytes) -> bytes:
    """With the checksums right again, so that damage comes further in."""
    out, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 8 + struct.unpack(">I", png[at : at + 4])[0]
        if end + 4 > len(png):
            break
        out.append(png[at:end] + struct.pack(">I", zlib.crc32(png[at + 4 : end])))
        at = end + 4
    return b"".join([*out, png[at:]])


# Through the decoders


@dataclass
class Found:
    """What became of files: counted, and the worst."""

    decoded: Counter = field(default_factory=Counter)  # by format
    refused: Counter = field(default_factory=Counter)  # by reason
    slowest: tuple[float, str] = (0.0, "")
    memory: tuple[int, str] = (0, "")  # resident, of a child, in bytes
    space: int = 0  # addresses of a child, in bytes
    over_10_s: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "files": self.decoded.total() + self.refused.total(),
            "decoded": dict(self.decoded.most_common()),
            "refused": dict(self.refused.most_common()),
            "slowest_seconds": [round(self.slowest[0], 2), self.slowest[1]],
            "longer_than_10_s": self.over_10_s,
            "child_resident_mb": [round(self.memory[0] / 1e6), self.memory[1]],
            "child_address_space_mb": round(self.space / 1e6),
        }


class Attack:
    """A pool of decoders, and what is right of what comes out of it."""

    def __init__(self, limits: Limits, say: Say, workers: int = 1) -> None:
        self.limits = limits
        self.say = say
        self.found = Found()
        self._pool = DecoderPool(limits, workers)
        self._good = file_of(photo(size=(400, 300)), "JPEG", exif=picture_seeds.exif())
        with Decoder(limits) as fresh:
            self._right = self._vector(fresh.decode(self._good, WANTED))

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        peak, _ = self.found.memory
        if peak > self.limits.max_memory:
            self.say(f"a child took {peak / 1e6:.0f} MB")

    def throw(
        self, name: str, data: bytes, request: Request = WANTED, *, picture: bool = True
    ) -> None:
        """One file; where it is no `picture`, it must be refused."""
        begun = time.monotonic()
        try:
            decoded = self._pool.decode(data, request)
        except ImageError as error:
            self.found.refused[self._kind_of(name, str(error))] += 1
        except Exception as error:
            self.say(f"{name}: {error!r}")
        else:
            self.found.decoded[decoded.format] += 1
            self._look_at(name, decoded, picture)
        took = time.monotonic() - begun
        self.found.slowest = max(self.found.slowest, (took, name))
        if took > 10:
            self.found.over_10_s.append(f"{name}: {took:.1f} s")
        if took > self.limits.seconds + GRACE:
            self.say(f"{name}: took {took:.1f} s")
        self._weigh(name)

    def good(self, after: str) -> None:
        """A good picture gives the very vector that it should."""
        try:
            vector = self._vector(self._pool.decode(self._good, WANTED))
        except Exception as error:
            self.say(f"a good picture after {after}: {error!r}")
            return
        if vector != self._right:
            self.say(f"a good picture after {after} has another vector")

    def _vector(self, decoded: Decoded) -> bytes:
        return ENCODER.encode(decoded.pixels[None])[0].tobytes() + decoded.thumbnail

    def _kind_of(self, name: str, reason: str) -> str:
        if wrong := what_is_wrong_with(reason):
            self.say(f"{name}: {wrong}")
        return re.sub(r"\d[\d,.]*", "N", reason.partition(" (pictures")[0])

    def _look_at(self, name: str, decoded: Decoded, picture: bool) -> None:
        if not picture:
            self.say(f"{name}: was decoded as {decoded.format}")
        if decoded.format not in READ:
            self.say(f"{name}: {decoded.format} is not on the list")
        if decoded.width * decoded.height > self.limits.max_pixels:
            self.say(f"{name}: {decoded.width} × {decoded.height} pixels were decoded")
        if decoded.pixels is not None and decoded.pixels.shape != SQUARE:
            self.say(f"{name}: pixels of the shape {decoded.pixels.shape}")
        for made in (decoded.thumbnail, decoded.picture):
            if made is not None and (wrong := what_came_along(made)):
                self.say(f"{name}: {wrong}")
        for fact, value in decoded.facts.items():
            if isinstance(value, float) and not np.isfinite(value):
                self.say(f"{name}: {fact} is {value}")

    def _weigh(self, name: str) -> None:
        """The child's memory, where there is still a child."""
        process = self._pool._decoders[0]._process
        if process is None or sys.platform != "linux":
            return
        with suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks = dict(re.findall(r"^(VmHWM|VmPeak):\s+(\d+)", status, re.M))
            if peaks:
                resident, space = int(peaks["VmHWM"]) * 1024, int(peaks["VmPeak"]) * 1024
                self.found.memory = max(self.found.memory, (resident, name))
                self.found.space = max(self.found.space, space)
                if space > self.limits.max_memory:
                    self.say(f"{name}: the child has {space / 1e6:.0f} MB of addresses")


def what_came_along(made: bytes) -> str | None:
    """What a thumbnail or picture of ours holds besides pixels."""
    if SECRET.encode() in made:
        return "the original's metadata is in what was made of it"
    if made.startswith(b"RIFF"):
        kinds, at = [], 12
        while at + 8 <= len(made):
            kinds.append(made[at : at + 4])
            size = struct.unpack("<I", made[at + 4 : at + 8])[0]
            at += 8 + size + (size & 1)
        if at != len(made) or set(kinds) - {b"VP8 ", b"VP8L"}:
            return f"the thumbnail holds {kinds}"
        return None
    if re.search(rb"\xff[\xe1\xe2\xed\xfe]", made[:400]) or not made.endswith(b"\xff\xd9"):
        return "the picture holds more than pixels"
    return None


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, file) of damaged files: each seed file in turn, those of formats that we read
    four times as often."""
    seeds = picture_seeds.seeds()
    names, files = list(seeds), list(seeds.values())
    ours = [name for name in names if name.split()[0] in READ | {"MPO", "HEIF"}]
    names += ours * 3 if count > 5 * len(names) else []
    for number in range(count):
        name = names[number % len(names)]
        chance = random.Random(f"{seed} {number}")
        yield (
            f"{name}, mutation {number} of seed {seed}",
            mutated(seeds[name], chance, files),
        )


def throw_mutations(attack: Attack, count: int, seed: int) -> dict[str, Any]:
    formats: Counter = Counter()
    for number, (name, data) in enumerate(mutations(count, seed)):
        formats[name.split()[0]] += 1
        attack.throw(name, data, LARGE if number % 10 == 9 else WANTED)
        if number % BATCH == BATCH - 1:
            attack.good(name)
    return {**attack.found.figures(), "formats": len(formats)}


def throw_polyglots(attack: Attack) -> dict[str, Any]:
    for name, (data, picture) in picture_bombs.polyglots().items():
        attack.throw(name, data, picture=picture)
        if picture:
            attack.throw(name, data, LARGE)
    attack.good("polyglots")
    return attack.found.figures()


def throw_bombs(attack: Attack, names: Iterable[str] | None = None) -> dict[str, Any]:
    makers = picture_bombs.bombs()
    for name in names or makers:
        attack.throw(name, makers[name]())
        attack.good(name)
    return attack.found.figures()


# The other ways in


class Parent:
    """How much the resident memory of this process rises."""

    def __enter__(self) -> Parent:
        from threading import Event, Thread

        process = psutil.Process()
        self.start = self.most = process.memory_info().rss
        self._end = Event()

        def weigh() -> None:
            while not self._end.wait(0.02):
                self.most = max(self.most, process.memory_info().rss)

        self._thread = Thread(target=weigh)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def rise(self) -> float:
        """In MB."""
        return round((self.most - self.start) / 1e6, 1)


def embedded(
    folder: Path, files: dict[str, bytes], limits: Limits, say: Say
) -> dict[str, Any]:
    """What becomes of runs over these files in a folder, as BLOBs of a table, and behind
    addresses, each with a good picture at the end."""
    from core import embed, failures, faults, sql, value
    from web_server import web

    files = {
        f"{number:03}-{re.sub('[^A-Za-z]', '-', name)}.jpg": data
        for number, (name, data) in enumerate(files.items())
    }
    files["zz-good.jpg"] = file_of(photo(), "JPEG")
    figures = {}
    pictures = folder / "bombs"
    pictures.mkdir()
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    blobs, addresses = folder / "blobs.db", folder / "addresses.db"
    sql(blobs, "create table images (id integer primary key, name, data)")
    sql(addresses, "create table images (id integer primary key, name, address)")
    for name, data in files.items():
        sql(blobs, "insert into images (name, data) values (?, ?)", (name, data))
    with web(lambda path, _: (200, files[path.strip("/")])) as site:
        for name in files:
            link = (name, f"{site}/{name}")
            sql(addresses, "insert into images (name, address) values (?, ?)", link)
        ways: dict[str, tuple[Path, Any, dict]] = {
            "folder": (folder / "folder.db", pictures, {}),
            "blobs": (blobs, None, {"blob_column": "data"}),
            "addresses": (
                addresses,
                None,
                {"url_column": "address", "allow_private_addresses": True},
            ),
        }
        for way, (path, source, more) in ways.items():
            begun = time.monotonic()
            with Parent() as parent:
                summary = embed(path, source, limits=limits, workers=2, **more)
            noted = failures(path)
            figures[way] = {
                "embedded": summary.embedded,
                "failed": summary.failed,
                "seconds": round(time.monotonic() - begun, 1),
                "parent_memory_rise_mb": parent.rise,
            }
            if summary.embedded < 1 or len(noted) != summary.failed:
                say(f"{way}: {figures[way]}, {len(noted)} failures noted")
            for _, where, reason in noted:
                if wrong := what_is_wrong_with(reason):
                    say(f"{way}: {where}: {wrong}")
            if parent.rise > 600:  # what is read before its decoder is free, and more
                say(f"{way}: the memory of embed rose by {parent.rise} MB")
            if way != "addresses" and faults(path):
                say(f"{way}: {faults(path)}")
            good = "select count(*) from _image_similarity_items where sha256 = ?"
            digest = hashlib.sha256((pictures / "zz-good.jpg").read_bytes())
            if not value(path, good, (digest.hexdigest(),)):
                say(f"{way}: the good picture was not embedded")
    return figures


def posted(folder: Path, names: Iterable[str], times: int, say: Say) -> dict[str, Any]:
    """Uploads to a real Datasette: bombs, files just under the limit, slow ones, and ones
    that go away."""
    from conftest import make_photos, picture
    from core import embed

    database = folder / "gallery.db"
    embed(database, make_photos(folder / "photos"), label_from_folder=True)
    makers = picture_bombs.bombs()
    bombs = [makers[name]() for name in names]
    figures = {}
    with Server(database) as server:
        for path in (SEARCH, ADD):  # children and encoder are there
            server.post(path, picture("red", 90))
        many = [bombs[number % len(bombs)] for number in range(times)]
        figures["bombs at once"] = all_at_once(server, many, say)
        large = picture("red", 91) + bytes(UPLOADS.max_bytes - 100_000)
        figures["20 MB at once"] = all_at_once(server, [large] * times, say)
        figures["slow and gone"] = slow_and_gone(server, picture("red", 92), say)
        status, body = server.post(SEARCH, picture("red", 93))
        if status != 200:
            say(f"a good upload after all that was answered {status}: {body[:200]!r}")
        if left := list(server.temporary.iterdir()):
            say(f"temporary files are left: {left}")
    return figures


# All of it


def run(
    report: Report,
    *,
    mutations: int,
    seed: int,
    bombs: list[str] | None,
    uploads: int,
    local: bool,
) -> dict[str, Any]:
    """`bombs` names some of them, None all; `local` is as `embed` decodes as well."""
    figures: dict[str, Any] = {}
    names = bombs or list(picture_bombs.bombs())
    for kind, limits in [("upload", UPLOADS)] + [("embed", LOCAL_FILES)] * local:
        with Attack(limits, report.failed) as attack:
            figures[f"mutations, as {kind}"] = throw_mutations(attack, mutations, seed)
            attack.found = Found()
            figures[f"polyglots, as {kind}"] = throw_polyglots(attack)
            attack.found = Found()
            figures[f"bombs, as {kind}"] = throw_bombs(attack, names)
        print(f"as {kind}: done", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures["runs of embed"] = embedded(
            Path(folder),
            {name: picture_bombs.bombs()[name]() for name in names},
            UPLOADS,
            report.failed,
        )
    if uploads:
        with tempfile.TemporaryDirectory() as folder:
            figures["uploads"] = posted(Path(folder), POSTED, uploads, report.failed)
    return figures


POSTED = [
    "PNG grey",
    "PNG 16-bit RGBA",
    "PNG rows for ever",
    "PNG eXIf",
    "JPEG scans",
    "GIF frames",
    "TIFF a tile of 400 MB",
    "TIFF deflate, RGBA",
    "WEBP frames",
    "AVIF lies",
    "BMP RLE",
    "PPM text",
]


def main() -> int:
    parser = options("pictures", __doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--uploads", type=int, default=50, help="at once; 0 for none")
    parser.add_argument("--bombs", nargs="*", help="some only, by name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Nothing that is noted here reaches the user's own folders.
        os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_CACHE_HOME"] = folder
        report = Report("pictures", given)
        figures = run(
            report,
            mutations=given.mutations,
            seed=given.seed,
            bombs=given.bombs,
            uploads=given.uploads,
            local=True,
        )
    return report.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
