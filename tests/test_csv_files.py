"""CSV files as people have them are read as a person reads them, and nothing is lost
without a word."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import SHARED

from datasette_image_similarity.csv_files import CsvTable, read_csv
from datasette_image_similarity.errors import CollectionError

CASES = SHARED / "cases" / "csv"
NAMES = "file;name\np1.jpg;Käse Café\np2.jpg;Müller\n"
RUSSIAN = "файл;имя\nкрасный.jpg;Синий\n"


def table(folder: Path, content: str | bytes, encoding: str | None = None) -> CsvTable:
    file = folder / "some.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(file, encoding)


def columns(folder: Path, content: str | bytes) -> dict[str, list]:
    rows = table(folder, content).rows
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("1_pandas_index.csv", {"column_1": 0, "file": "p01.jpg", "label": "a"}, "no name"),
        ("2_excel_unicode_text.txt", {"file": "p01.jpg", "name": "Étoile"}, None),
        ("3_excel_sep_line.csv", {"file": "p01.jpg", "name": "a"}, None),
        ("5_empty_columns_at_the_end.csv", {"file": "p01.jpg", "name": "a"}, "2 empty col"),
        ("6_one_row_with_a_comma_too_many.csv", {"file": "p01.jpg", "name": "a"}, "Row 3 "),
        ("7_windows_1251.csv", {"file": "p01.jpg", "name": "Красный"}, "--encoding"),
        ("8_versions.csv", {"id": 1, "file": "p01.jpg", "version": "1.1"}, None),
        ("9_sku.csv", {"sku": "1.1", "file": "p01.jpg"}, None),
    ],
)
def test_the_cases(name: str, rows: dict, said: str | None) -> None:
    found = read_csv(CASES / name)
    assert found.rows[0] == rows
    assert len(found.rows) >= 2
    assert (said in " ".join(found.notes)) if said else found.notes == []


@pytest.mark.parametrize(
    "encoding",
    [
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"),
        *("utf-32", "utf-32-le", "utf-32-be"),
    ],
)
@pytest.mark.parametrize("text", [NAMES, RUSSIAN, NAMES.replace("Käse", "奶酪")])
def test_encodings_that_can_be_told(tmp_path: Path, encoding: str, text: str) -> None:
    found = table(tmp_path, text.encode(encoding))
    assert found.rows == table(tmp_path, text).rows
    assert found.notes == []


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(NAMES, "cp1252"), (NAMES, "mac_roman"), (RUSSIAN, "cp1251")],
)
def test_an_encoding_that_was_guessed_is_told(
    tmp_path: Path, text: str, encoding: str
) -> None:
    found = table(tmp_path, text.encode(encoding))
    assert found.rows == table(tmp_path, text).rows
    assert len(found.notes) == 1
    assert encoding in found.notes[0]
    named = table(tmp_path, text.encode(encoding), encoding)
    assert (named.rows, named.notes) == (found.rows, [])


def test_a_stray_byte_does_not_change_the_encoding(tmp_path: Path) -> None:
    found = table(tmp_path, NAMES.encode() + b"p3.jpg;na\xefve\n")
    assert [row["name"] for row in found.rows] == ["Käse Café", "Müller", "na�ve"]
    assert "in line 4" in found.notes[0]


def test_an_encoding_that_is_none_or_does_not_fit(tmp_path: Path) -> None:
    for encoding in ("nope", "base64"):
        with pytest.raises(CollectionError, match="no text encoding"):
            table(tmp_path, NAMES, encoding)
    with pytest.raises(CollectionError, match="is not utf-8, byte"):
        table(tmp_path, NAMES.encode("cp1252"), "utf-8")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_delimiters_and_ends_of_lines(tmp_path: Path, delimiter: str, end: str) -> None:
    text = f'"name, long"~file{end}{end}"a, b; c"~p1.jpg{end}"x\n""y"""~p2.jpg{end}'
    assert columns(tmp_path, text.replace("~", delimiter)) == {
        "name, long": ["a, b; c", 'x\n"y"'],
        "file": ["p1.jpg", "p2.jpg"],
    }


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;"])
def test_the_delimiter_that_excel_names(tmp_path: Path, line: str) -> None:
    found = columns(tmp_path, f"{line}\r\nfile;name\r\np1.jpg;a,b\r\n")
    assert found == {"file": ["p1.jpg"], "name": ["a,b"]}


def test_decimal_commas_do_not_delimit(tmp_path: Path) -> None:
    found = columns(tmp_path, "id;price\n1;1,5\n2;2,50\n")
    assert found == {"id": [1, 2], "price": ["1,5", "2,50"]}


def test_one_column(tmp_path: Path) -> None:
    assert columns(tmp_path, "file\na.jpg\nb, c.jpg\n") == {"file": ["a.jpg", "b, c.jpg"]}


def test_columns_without_a_name(tmp_path: Path) -> None:
    found = table(tmp_path, ",file,,name,\n0,p1,,a,\n1,p2,,b,\n")
    assert found.rows[1] == {"column_1": 1, "file": "p2", "name": "b"}
    assert found.notes == [
        "Column 1 has no name: it is called column_1",
        "2 empty columns without a name left out",
    ]


def test_row_names_that_r_writes_without_a_column(tmp_path: Path) -> None:
    found = columns(tmp_path, '"file","n"\n"1","a.jpg",5\n"2","b.jpg",6\n')
    assert found == {"column_1": [1, 2], "file": ["a.jpg", "b.jpg"], "n": [5, 6]}


def test_names_that_repeat_are_numbered(tmp_path: Path) -> None:
    found = table(tmp_path, "a,A,a_2,a\n1,2,3,4\n")
    assert found.rows == [{"a": 1, "A_3": 2, "a_2": 3, "a_4": 4}]
    assert len(found.notes) == 2


def test_rows_of_other_lengths_are_told(tmp_path: Path) -> None:
    found = table(tmp_path, "a,b\n1,2\n3,4,5\n\n6\n7,8,,\n")
    assert found.rows == [{"a": 1, "b": 2}, {"a": 6, "b": None}, {"a": 7, "b": 8}]
    assert found.numbers == [2, 5, 6]
    assert found.notes[0].startswith("Row 3 left out: row 3 has 3 values for 2 columns")
    assert found.notes[1].startswith("Row 5: fewer values than the 2 columns")


@pytest.mark.parametrize("rest", ['p2,b\np3,"c"\n', 'p2,"b"\np3,c\n', "p2,b\np3,c\n"])
def test_a_quote_that_is_never_closed_hides_no_rows(tmp_path: Path, rest: str) -> None:
    found = table(tmp_path, f'file,name\np1,"unclosed\n{rest}')
    assert [row["file"] for row in found.rows] == ["p1", "p2", "p3"]
    assert found.notes == ["Row 2: quotes that do not match"]


def test_long_cells_leave_the_limit_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * 300_000
    assert columns(tmp_path, f'a,b\n1,"{long}"\n') == {"a": [1], "b": [long]}
    assert csv.field_size_limit() == before


def test_nul_characters_are_left_out(tmp_path: Path) -> None:
    found = table(tmp_path, "a,b\n1,x\0y\n2,z\n\x1a")
    assert [row["b"] for row in found.rows] == ["xy", "z"]
    assert found.notes == ["1 NUL character left out"]


@pytest.mark.parametrize(
    "texts",
    [
        *(["1.10", "1.1"], ["01234", "5"], ["1e5", "2"], ["+1", "2"], [" 1", "2"]),
        *(["-0", "1"], ["1.", "2.5"], [".5", "1.5"], ["1,5", "2,5"], ["1_000", "2"]),
        *(["9223372036854775808", "1"], ["0.1234567890123456", "1.5"], ["2.0", "3"]),
        *(["1.5", "n/a"], ["nan", "inf"], ["-0.0", "1.5"], ["٣", "٤"], ["True", "1"]),
    ],
)
def test_what_would_print_otherwise_stays_text(tmp_path: Path, texts: list[str]) -> None:
    text = "\n".join(["a|b", *(f"{one}|x" for one in texts), "|y"])
    assert columns(tmp_path, text)["a"] == [*texts, ""]


def test_numbers(tmp_path: Path) -> None:
    text = "a,b,c,d\n1,1.5,2.5,9223372036854775807\n-2,,8,-9223372036854775808\n,2.0,,\n"
    assert columns(tmp_path, text) == {
        "a": [1, -2, None],
        "b": [1.5, None, 2.0],
        "c": [2.5, 8, None],
        "d": [2**63 - 1, -(2**63), None],
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty, or not a CSV"),
        (b"\0" * 5000, "empty, or not a CSV"),
        (bytes(range(256)) * 9, "empty, or not a CSV"),
        ("a,b\n", "no rows"),
        ("sep=;\n", "no header"),
        ("a,b\n1,2,3\n", "row 2 has 3 values for 2 columns"),
        (b"PK\3\4rest", "Excel"),
        (b"\x89PNG\r\n", "a picture"),
    ],
)
def test_what_is_no_csv_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(CollectionError, match=said):
        table(tmp_path, content)
