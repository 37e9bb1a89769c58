"""What cameras and programs write beside the pixels: which way is up, when, with what and
where a picture was taken.

Part of the decoder's child process (image_worker.py). Whatever a file says may be wrong,
so only plausible dates and places are taken, and nothing in here fails a picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

# Cameras write some 64 KB. Each of its entries may claim the whole block, so that 16 MB
# of them would take minutes.
EXIF_BYTES = 1 << 20
FIRST_PHOTOGRAPH = 1826  # the year; scans of old prints are dated by what they show
TEXT_CHARS = 100  # of a camera's name or a date, at most

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[5], TURNS[6], TURNS[7], TURNS[8]}

COMPACT = re.compile(r"\s*(\d{4})(\d\d)(\d\d)[T ]?(?:(\d\d)(\d\d)(\d\d)?)?(?!\d)")
DATE = re.compile(r"\s*(\d{4})\s*[-:/.\s]\s*(\d{1,2})\s*[-:/.\s]\s*(\d{1,2})(?!\d)")
TIME = re.compile(
    r"[T,\s]*(\d{1,2})\s*([-:.\s])\s*(\d{1,2})(?:\s*\2\s*(\d{1,2}))?(?!\d)"
    r"(?:[.,]\d*)?(?:\s*([AP])\.?M\b)?",
    re.IGNORECASE,
)
OFFSET = re.compile(
    r"\s*(?:UTC|GMT)?\s*(?:(Z|UTC|GMT)|([+-])(\d{1,2}):?(\d\d)?)(?!\d)", re.IGNORECASE
)
XMP_DATES = (b"exif:DateTimeOriginal", b"photoshop:DateCreated", b"xmp:CreateDate")
XMP_VALUE = rb"""\s*(?:>|=\s*["'])\s*([^<"']{8,40})"""


def exif_of(picture: Image.Image) -> Image.Exif:
    """The picture's EXIF block; an empty one if it has none that can be read."""
    if len(picture.info.get("exif") or b"") > EXIF_BYTES:
        return Image.Exif()
    try:
        return picture.getexif()
    except Exception:  # a broken block is as good as none
        return Image.Exif()


def turning(exif: Image.Exif) -> Image.Transpose | None:
    """How to turn the stored picture upright."""
    with suppress(Exception):
        return TURNS.get(exif.get(Base.Orientation))
    return None


def facts_of(picture: Image.Image) -> dict[str, str | float]:
    """When, with what and where it was taken, as far as that makes sense: `taken_at`,
    `camera`, `software`, `latitude` and `longitude`."""
    facts = {}
    readers: tuple[Callable[[Image.Image], dict], ...] = (taken_at, camera, software, place)
    for reader in readers:
        with suppress(Exception):  # cameras and editors write the strangest things
            facts.update(reader(picture))
    return facts


# When


def taken_at(picture: Image.Image) -> dict[str, str]:
    """The first plausible date, as ISO 8601 to the second, or a day if no time is known.

    It is local time, with its offset behind it ("+02:00") if the file says one.
    """
    for value, offset in written_dates(picture):
        if moment := read_date(text_of(value).replace("\0", " "), clean(offset)):
            return {"taken_at": moment}
    return {}


def written_dates(picture: Image.Image) -> Iterator[tuple[object, object]]:
    """Dates and their offsets as they were written, the most telling ones first."""
    exif = exif_of(picture)
    times = directory(exif, IFD.Exif)
    yield times.get(Base.DateTimeOriginal), times.get(Base.OffsetTimeOriginal)
    yield times.get(Base.DateTimeDigitized), times.get(Base.OffsetTimeDigitized)
    yield exif.get(Base.DateTimeOriginal), None  # where TIFF/EP has it
    yield exif.get(Base.DateTime), times.get(Base.OffsetTime)
    xmp = picture.info.get("xmp")
    if isinstance(xmp, bytes):
        for name in XMP_DATES:
            if found := re.search(name + XMP_VALUE, xmp[:EXIF_BYTES]):
                yield found[1], None


def read_date(text: str, offset: str) -> str | None:
    """A date in any of the forms that cameras and programs write; None if it is none that
    a picture can have."""
    text = COMPACT.sub(r"\1:\2:\3 \4:\5:\6", text[:TEXT_CHARS], count=1)
    day = DATE.match(text)
    if day is None:
        return None
    try:
        moment = datetime(*map(int, day.groups()))
    except ValueError:  # 0000:00:00
        return None
    tomorrow = date.today() + timedelta(days=1)  # it may be tomorrow where it was taken
    if moment.year < FIRST_PHOTOGRAPH or moment.date() > tomorrow:
        return None
    time = read_time(text[day.end() :])
    if time is None:
        return moment.date().isoformat()
    since_midnight, behind = time
    zone = read_offset(behind) or read_offset(offset)
    return (moment + since_midnight).isoformat() + zone


def read_time(text: str) -> tuple[timedelta, str] | None:
    """The time since midnight, and the text behind it; None if it is no time of day."""
    found = TIME.match(text)
    if found is None:
        return None
    hour, minute, second = (int(found[part] or 0) for part in (1, 3, 4))
    if hour > 24 or minute > 59 or second > 60:
        return None
    if found[5]:
        hour = hour % 12 + (12 if found[5] in "pP" else 0)
    # Telephones that count hours from 1 to 24 write 24:08 for eight past midnight.
    passed = timedelta(hours=hour % 24, minutes=minute, seconds=second)
    return passed, text[found.end() :]


def read_offset(text: str) -> str:
    """ "+02:00" for "+0200" or "+2", "+00:00" for "Z"; empty if it is none."""
    found = OFFSET.match(text)
    if found is None:
        return ""
    utc, sign, hours, minutes = found.groups()
    if utc:
        return "+00:00"
    if int(hours) > 14 or int(minutes or 0) > 59:
        return ""
    return f"{sign}{int(hours):02}:{minutes or '00'}"


# With what


def camera(picture: Image.Image) -> dict[str, str]:
    exif = exif_of(picture)
    make = clean(exif.get(Base.Make))
    model = clean(exif.get(Base.Model))
    # "Canon" + "Canon EOS 5D", but also "NIKON CORPORATION" + "NIKON D70"
    if make and model.lower().startswith(make.split()[0].lower()):
        make = ""
    name = f"{make} {model}".strip()
    return {"camera": name} if name else {}


def software(picture: Image.Image) -> dict[str, str]:
    """What saved the file: a camera's firmware, or an editing program."""
    name = clean(exif_of(picture).get(Base.Software))
    return {"software": name} if name else {}


# Where


def place(picture: Image.Image) -> dict[str, float]:
    """Latitude and longitude in degrees, both or none."""
    gps = directory(exif_of(picture), IFD.GPSInfo)
    latitude = signed(degrees(gps[GPS.GPSLatitude]), gps.get(GPS.GPSLatitudeRef), "NS")
    longitude = signed(degrees(gps[GPS.GPSLongitude]), gps.get(GPS.GPSLongitudeRef), "EW")
    on_earth = abs(latitude) <= 90 and abs(longitude) <= 180  # not so for NaN
    if not on_earth or latitude == longitude == 0:
        return {}
    return {"latitude": latitude, "longitude": longitude}


def degrees(parts: object) -> float:
    """Degrees, with minutes and seconds if there are any; NaN, as from x/0, stays NaN."""
    if isinstance(parts, (str, bytes)):
        parts = re.findall(r"-?\d+(?:\.\d+)?", clean(parts))
    numbers = map(float, parts if isinstance(parts, (tuple, list)) else (parts,))
    whole, minutes, seconds = (*numbers, 0.0, 0.0)[:3]
    if not (0 <= minutes <= 60 and 0 <= seconds <= 60):
        return math.nan
    size = abs(whole) + minutes / 60 + seconds / 3600
    return round(math.copysign(size, whole), 7)


def signed(degrees: float, reference: object, letters: str) -> float:
    """Degrees to the north or east; NaN if the reference names no direction, or another
    one than a sign before the number."""
    letter = clean(reference)[:1].upper()
    if letter == letters[1]:
        return 0 - abs(degrees)
    return degrees if letter == letters[0] and degrees >= 0 else math.nan


# Reading tags


def directory(exif: Image.Exif, which: IFD) -> dict[int, object]:
    with suppress(Exception):  # it is broken, or elsewhere
        return exif.get_ifd(which)
    return {}


def text_of(value: object) -> str:
    """The text of a tag: UTF-8 if it can be, else Latin-1, which Pillow takes all for."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return ""
    with suppress(UnicodeError):
        return text.encode("latin-1").decode()
    return text


def clean(value: object) -> str:
    """The text without the padding that cameras add; empty if it is not a line."""
    text = text_of(value).strip("\0 \t\r\n").partition("\0")[0].rstrip()
    return text if text.isprintable() and len(text) <= TEXT_CHARS else ""
