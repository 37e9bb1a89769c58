"""Dates and places as cameras and programs really write them."""

import io
import math
import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from datasette_image_similarity.exif import degrees, read_date, signed
from datasette_image_similarity.images import LOCAL_FILES, Decoder, Request

CASES = Path(__file__).parent.parent.parent / "shared" / "cases" / "exif"
PLAIN = "2023-05-06T07:08:09"
ORIGINAL, DIGITIZED = ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized


@pytest.fixture(scope="module")
def decoder():
    with Decoder(LOCAL_FILES) as decoder:
        yield decoder


def facts(decoder, exif: Image.Exif | bytes, format: str = "JPEG", **options) -> dict:
    out = io.BytesIO()
    data = exif if isinstance(exif, bytes) else exif.tobytes()
    Image.new("RGB", (40, 30)).save(out, format, exif=data, **options)
    return decoder.decode(out.getvalue(), Request()).facts


def exif_with(top=(), times=(), gps=()) -> Image.Exif:
    exif = Image.Exif()
    exif.update(dict(top))
    exif.get_ifd(ExifTags.IFD.Exif).update(dict(times))
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(dict(gps))
    return exif


@pytest.mark.parametrize(
    ("name", "taken_at"),
    [
        ("01_plain", PLAIN),
        ("02_only_datetime306", PLAIN),
        ("03_tz_suffix", "2025-01-14T18:31:30+00:00"),
        ("04_subsec_in_string", PLAIN),
        ("05_iso_z", PLAIN + "+00:00"),
        ("06_hour24", "2023-05-06T00:08:09"),
        ("07_sec60", "2023-05-06T07:09:00"),
        ("08_space_padded", PLAIN),
        ("09_date_only", "2023-05-06"),
        ("12_no_seconds", "2023-05-06T07:08:00"),
        ("17_dto_bad_dt_ok", PLAIN),
        ("18_year_0001", None),
    ],
)
@pytest.mark.skipif(not CASES.exists(), reason="the collected cases are not here")
def test_collected_dates(decoder, name, taken_at):
    data = (CASES / f"{name}.jpg").read_bytes()
    assert decoder.decode(data, Request()).facts.get("taken_at") == taken_at


@pytest.mark.parametrize("name", ["g01_ok", "g03_lower", "g04_words", "g06_two_parts"])
@pytest.mark.skipif(not CASES.exists(), reason="the collected cases are not here")
def test_collected_places(decoder, name):
    data = (CASES / f"{name}.jpg").read_bytes()
    assert decoder.decode(data, Request()).facts == {
        "latitude": pytest.approx(40.446, abs=0.001),
        "longitude": pytest.approx(-79.982, abs=0.001),
    }


# Dates


@pytest.mark.parametrize(
    ("written", "taken_at"),
    [
        ("2023:05:06 07:08:09 ", PLAIN),
        ("2023-05-06T07:08:09", PLAIN),
        ("2023/05/06 07:08:09", PLAIN),
        ("2023.05.06 07:08:09", PLAIN),
        ("2023:5:6 7:8:9", PLAIN),
        ("2023 05 06 07 08 09", PLAIN),
        ("2023: 5: 6  7: 8: 9", PLAIN),
        ("2023-05-06 07-08-09", PLAIN),
        ("2023-05-06 07.08.09+02:00", PLAIN + "+02:00"),
        ("2023:05:06 07:08-03:30", "2023-05-06T07:08:00-03:30"),
        ("20230506 070809", PLAIN),
        ("20230506T070809Z", PLAIN + "+00:00"),
        ("20230506", "2023-05-06"),
        ("2023:05:06 07:08:09,25", PLAIN),
        ("2023:05:06 07:08:09.123456+05:30", PLAIN + "+05:30"),
        ("2023:05:06 07:08:09-0330", PLAIN + "-03:30"),
        ("2023:05:06 07:08:09 +2", PLAIN + "+02:00"),
        ("2023:05:06 07:08:09 UTC", PLAIN + "+00:00"),
        ("2023:05:06 07:08:09 GMT+1", PLAIN + "+01:00"),
        ("2023:05:06 07:08-05:00", "2023-05-06T07:08:00-05:00"),
        ("2023:05:06 07:08:09 PM", "2023-05-06T19:08:09"),
        ("2023:05:06 12:08:09 a.m.", "2023-05-06T00:08:09"),
        ("2023:05:06 23:59:60", "2023-05-07T00:00:00"),
        ("2023:05:06   :  :  ", "2023-05-06"),
        ("2023:05:06 25:61:61", "2023-05-06"),
        ("2023:05:06 07:08:09+99:00", PLAIN),
        ("1890:01:01 00:00:00", "1890-01-01T00:00:00"),
        ("2024:02:29 07:08:09", "2024-02-29T07:08:09"),
        ("2023:02:29 07:08:09", None),
        ("0000:00:00 00:00:00", None),
        ("0001:01:01 00:00:00", None),
        ("1601:01:01 00:00:00", None),
        ("2099:01:01 00:00:00", None),
        ("9999:12:31 24:59:60", None),
        ("    :  :     :  :  ", None),
        ("1683356889", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_dates_in_other_forms(written, taken_at):
    assert read_date(written, "") == taken_at


@pytest.mark.parametrize("format", ["%Y:%m:%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"])
def test_a_date_that_is_still_to_come_is_none(format):
    now = datetime.now()
    assert read_date(now.strftime(format), "") == now.isoformat()[:19]
    assert read_date((now + timedelta(days=3)).strftime(format), "") is None


@given(st.text(alphabet="0123456789:-+./ TZAPM\0٣é", max_size=200), st.text(max_size=9))
def test_any_text_is_a_plausible_date_or_none(written, offset):
    found = read_date(written, offset)
    assert (
        found is None
        or 1826 <= datetime.fromisoformat(found).year <= datetime.now().year + 1
    )


@pytest.mark.parametrize(
    ("top", "times", "taken_at"),
    [
        ({}, {ORIGINAL: "2023:05:06 07:08:09", 36881: "+02:00"}, PLAIN + "+02:00"),
        ({}, {ORIGINAL: "2023:05:06 07:08:09", 36881: "-0800"}, PLAIN + "-08:00"),
        ({}, {ORIGINAL: "2023:05:06 07:08:09Z", 36881: "+02:00"}, PLAIN + "+00:00"),
        ({}, {ORIGINAL: "2023:05:06 07:08:09", 36881: "   :  "}, PLAIN),
        ({}, {ORIGINAL: "2023:05:06 07:08:09", 37521: "123"}, PLAIN),
        # The offset of where it was edited says nothing about where it was taken.
        ({}, {ORIGINAL: "2023:05:06 07:08:09", 36880: "+02:00"}, PLAIN),
        ({306: "2023:05:06 07:08:09"}, {36880: "+02:00"}, PLAIN + "+02:00"),
        ({}, {DIGITIZED: "2023:05:06 07:08:09", 36882: "+02:00"}, PLAIN + "+02:00"),
        ({306: "2024:01:01 00:00:00"}, {DIGITIZED: "2023:05:06 07:08:09"}, PLAIN),
        ({306: "2024:01:01 00:00:00", ORIGINAL: "2023:05:06 07:08:09"}, {}, PLAIN),
        ({306: "2023:05:06 07:08:09"}, {ORIGINAL: "2099:01:01 00:00:00"}, PLAIN),
        ({306: "2023:05:06 07:08:09"}, {ORIGINAL: b"\xff\0\x07"}, PLAIN),
        ({}, {ORIGINAL: b"2023:05:06 07:08:09\0"}, PLAIN),
        ({}, {ORIGINAL: "2023:05:06\x0007:08:09\0\0"}, PLAIN),
        ({}, {ORIGINAL: "2023:05:06 07:08:09\0é"}, PLAIN),
        ({}, {ORIGINAL: 20230506}, None),
    ],
)
def test_the_first_date_that_makes_sense_is_taken_with_its_offset(
    decoder, top, times, taken_at
):
    assert facts(decoder, exif_with(top, times)).get("taken_at") == taken_at


def test_without_exif_the_date_is_read_from_xmp(decoder):
    for xmp in (
        b'<x:xmpmeta><rdf:Description xmp:CreateDate="2023-05-06T07:08:09+02:00"/>',
        b"<photoshop:DateCreated>2023-05-06T07:08:09.5+02:00</photoshop:DateCreated>",
        b"<exif:DateTimeOriginal>2023-05-06T07:08:09+02:00</exif:DateTimeOriginal>"
        b'<rdf:Description xmp:CreateDate="2024-01-01"/>',
    ):
        found = facts(decoder, b"", xmp=xmp)
        assert found == {"taken_at": PLAIN + "+02:00"}
    plain = exif_with({306: "2020:01:01 00:00:00"})
    assert facts(decoder, plain, xmp=xmp) == {"taken_at": "2020-01-01T00:00:00"}


# Places


@pytest.mark.parametrize(
    "gps",
    [
        {1: "s", 2: (33.0, 51.0, 24.0), 3: "w", 4: (70.0, 30.0, 0.0)},
        {1: "South", 2: (33.0, 51.4), 3: "WEST", 4: (70.5,)},
        {1: b"S\0", 2: (33.0, 51.4, 0.0), 3: b"W\0", 4: (70.0, 30.0)},
        {1: " S", 2: (33.8566667, 0.0, 0.0), 3: "W\0\0", 4: (70.5, 0.0, 0.0)},
        {1: "South latitude", 2: 33.8566667, 3: "West longitude", 4: 70.5},
    ],
)
def test_places_in_other_forms(decoder, gps):
    assert facts(decoder, exif_with(gps=gps)) == {
        "latitude": pytest.approx(-33.8566667),
        "longitude": pytest.approx(-70.5),
    }


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("33, 51, 24", 33.8566667),
        (b"33.8566667\0", 33.8566667),
        ((-33.0, 51.0, 24.0), -33.8566667),
        ((33.0, 60.0, 0.0), 34),
    ],
)
def test_degrees_in_types_that_pillow_does_not_write(written, read):
    assert degrees(written) == pytest.approx(read)


@pytest.mark.parametrize(
    ("value", "reference", "signed_value"),
    [
        (33.5, "N", 33.5),
        (-33.5, "S", -33.5),
        (-33.5, "N", None),  # a sign and a reference that contradict each other
        (33.5, "", None),
        (33.5, None, None),
        (33.5, "E", None),
        (0.0, "S", 0.0),
    ],
)
def test_the_reference_gives_the_sign(value, reference, signed_value):
    found = signed(value, reference, "NS")
    assert math.isnan(found) if signed_value is None else str(found) == str(signed_value)


# Wherever it is kept


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "JXL"])
def test_every_format_that_keeps_exif(decoder, format):
    need_plugin_of(format)
    exif = exif_with(
        {271: "Maker", 272: "C300"},
        {ORIGINAL: "2023:05:06 07:08:09.12", 36881: "+02:00"},
        {1: "n", 2: (40.0, 26.76), 3: "West", 4: (79.0, 58.93)},
    )
    assert facts(decoder, exif, format) == {
        "taken_at": PLAIN + "+02:00",
        "camera": "Maker C300",
        "latitude": pytest.approx(40.446),
        "longitude": pytest.approx(-79.9821667),
    }


@pytest.mark.parametrize("format", ["TIFF", "HEIF", "JXL"])
def test_a_broken_block_fails_no_picture(decoder, format):
    need_plugin_of(format)
    whole = exif_with({272: "C300"}, {ORIGINAL: "2023:05:06 07:08:09"}, {1: "N"}).tobytes()
    for seed in range(40):
        chance = random.Random(seed)
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            broken[chance.randrange(10, len(broken))] = chance.randrange(256)
        if format == "TIFF":  # a sub-directory is all that may be broken without the rest
            tags = {34665: chance.randrange(1, 9999), 306: bytes(broken[-19:])}
            facts(decoder, b"", "TIFF", tiffinfo=tags)
        else:
            facts(decoder, bytes(broken), format)


def need_plugin_of(format: str) -> None:
    """Skip the test where an extra is not installed."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if format == "JXL":
        pytest.importorskip("pillow_jxl")
