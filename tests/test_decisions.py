"""Decisions about duplicates: what counts, what survives, what can be taken back."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from core import embed, make_older
from dupes import GROUPS, put_groups
from serving import change

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore import decisions
from datasette_image_similarity.explore.decisions import GroupChanged
from datasette_image_similarity.explore.duplicates import find_duplicates


class Reviewer:
    """Somebody who looks through the groups of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conn = db.connect(path)
        self.collection = db.collections(self.conn)[0]

    def group(self, id: int) -> decisions.Group:
        return decisions.read_group(self.conn, self.collection, id)

    def pks(self, id: int) -> list[db.Key]:
        return [one.pk for one in self.group(id).members]

    def decide(self, id: int, action: str, pk: db.Key | None = None) -> dict[db.Key, str]:
        group = self.group(id)
        return decisions.decide(self.conn, self.collection, group, action, pk, "ada")

    def split(self, id: int, pk: db.Key) -> None:
        decisions.split(self.conn, self.collection, self.group(id), pk)

    def accept(self, tier: str) -> dict[db.Key, str]:
        return decisions.accept_tier(self.conn, self.collection, tier)

    def undo(self) -> list[db.Key]:
        return decisions.undo(self.conn, self.collection)

    def current(self) -> dict[db.Key, str]:
        return decisions.current(self.conn, self.collection)

    def tally(self, tier: str) -> decisions.Tally:
        found = decisions.summaries(self.conn, self.collection)
        return decisions.tallies(found)[tier]

    def ids(self) -> list[int]:
        return [one.id for one in decisions.summaries(self.conn, self.collection)]


@pytest.fixture
def ada(copied: Path) -> Iterator[Reviewer]:
    put_groups(copied)
    reviewer = Reviewer(copied)
    with closing(reviewer.conn):
        yield reviewer


def size_of(path: Path, *items: int) -> int:
    with closing(db.connect(path)) as conn:
        sizes = dict(conn.execute("select id, size from _image_similarity_items"))
    return sum(sizes[item] for item in items)


def test_accepting_keeps_the_suggested_and_marks_the_others(ada: Reviewer) -> None:
    assert ada.decide(2, "accept") == {3: "keep", 4: "mark", 5: "mark"}
    assert ada.current() == {3: "keep", 4: "mark", 5: "mark"}
    tally = ada.tally("same")
    assert (tally.groups, tally.open, tally.decided, tally.marked) == (3, 2, 1, 2)
    assert tally.marked_bytes == size_of(ada.path, 4, 5)
    row = ada.conn.execute("select * from _image_similarity_decisions").fetchone()
    assert (row["actor"], row["step"]) == ("ada", 1)


def test_another_keeper_can_be_chosen_and_the_newest_decision_counts(ada: Reviewer) -> None:
    ada.decide(2, "accept")
    assert ada.decide(2, "keep", 5) == {3: "mark", 5: "keep"}
    assert ada.current() == {3: "mark", 4: "mark", 5: "keep"}


def test_marking_one_keeps_what_was_undecided(ada: Reviewer) -> None:
    ada.decide(2, "mark", 4)
    assert ada.current() == {3: "keep", 4: "mark", 5: "keep"}
    assert ada.decide(2, "mark", 5) == {5: "mark"}
    assert ada.decide(2, "unmark", 4) == {4: "keep"}
    assert ada.current() == {3: "keep", 4: "keep", 5: "mark"}


def test_skipping_leaves_everything_as_it_is(ada: Reviewer) -> None:
    ada.decide(2, "mark", 4)
    put_groups(ada.path, [("same", (3, 4, 5, 6))])
    assert ada.group(1).open
    assert ada.decide(1, "skip") == {6: "skip"}
    assert not ada.group(1).open
    assert ada.current()[4] == "mark"


def test_doing_it_again_adds_nothing(ada: Reviewer) -> None:
    ada.decide(2, "accept")
    assert ada.decide(2, "accept") == {}
    assert decisions.steps(ada.conn, ada.collection) == 1


def test_a_split_picture_leaves_its_group_at_once_and_after_a_rerun(ada: Reviewer) -> None:
    ada.split(2, 4)
    assert ada.pks(2) == [3, 5]
    assert ada.current() == {}
    put_groups(ada.path, first=20)
    assert ada.pks(21) == [3, 5]
    ada.undo()
    assert ada.pks(21) == [3, 4, 5]


def test_a_group_of_which_one_picture_is_left_is_none(ada: Reviewer) -> None:
    ada.split(1, 2)
    assert ada.ids() == [2, 3, 4, 5]
    with pytest.raises(GroupChanged):
        ada.group(1)


def test_a_split_picture_stays_with_those_it_was_not_split_from(ada: Reviewer) -> None:
    ada.split(1, 2)
    put_groups(ada.path, [("same", (2, 3, 4)), ("same", (1, 2, 5))])
    assert ada.pks(1) == [2, 3, 4]
    assert ada.pks(2) == [1, 5]


def test_undo_takes_back_step_by_step(ada: Reviewer) -> None:
    ada.decide(2, "accept")
    ada.decide(3, "skip")
    ada.decide(2, "keep", 4)
    assert sorted(ada.undo()) == [3, 4]
    assert ada.current() == {3: "keep", 4: "mark", 5: "mark", 6: "skip", 7: "skip"}
    assert sorted(ada.undo()) == [6, 7]
    assert sorted(ada.undo()) == [3, 4, 5]
    assert (ada.current(), ada.undo()) == ({}, [])


def test_a_tier_is_accepted_as_one_step(ada: Reviewer) -> None:
    before = ada.tally("same")
    assert (before.acceptable, before.would_mark) == (3, 7)
    assert before.would_win == size_of(ada.path, 4, 5, 7, 10, 11, 12, 13)
    changed = ada.accept("same")
    assert [pk for pk, new in changed.items() if new == "keep"] == [3, 6, 9]
    assert sum(new == "mark" for new in changed.values()) == 7
    assert (ada.tally("same").open, ada.tally("identical").open) == (0, 1)
    ada.undo()
    assert ada.current() == {}


def test_accepting_a_tier_contradicts_nobody(ada: Reviewer) -> None:
    ada.decide(2, "keep", 4)
    ada.decide(3, "accept")
    put_groups(
        ada.path,
        [
            ("same", (3, 4, 5, 8)),  # its suggested keeper is marked
            ("same", (6, 7, 14)),  # goes with what was decided
            ("same", (15, 3)),  # goes with it too
            ("same", (16, 4)),  # would mark what is kept
        ],
    )
    tally = ada.tally("same")
    assert (tally.open, tally.acceptable, tally.would_mark) == (4, 2, 1)
    assert ada.accept("same") == {14: "mark", 15: "keep"}
    assert ada.tally("same").open == 2


def test_decisions_survive_a_rerun(ada: Reviewer) -> None:
    ada.decide(2, "accept")
    put_groups(ada.path, GROUPS[::-1], first=7)
    assert ada.current() == {3: "keep", 4: "mark", 5: "mark"}
    assert not ada.group(10).open
    put_groups(ada.path, [("same", (3, 4, 5, 6))])
    assert [one.decision for one in ada.group(1).members] == ["keep", "mark", "mark", None]


def test_a_decision_is_void_for_a_changed_picture(ada: Reviewer) -> None:
    ada.decide(2, "accept")
    change(ada.path, "update _image_similarity_items set sha256 = 'ab' where id = 4")
    assert ada.current() == {3: "keep", 5: "mark"}
    assert ada.group(2).open


def test_pictures_whose_rows_are_gone_are_in_no_group(ada: Reviewer) -> None:
    ada.decide(2, "accept")
    version = ada.group(2).version
    change(ada.path, "delete from images where id in (1, 3)")
    assert ada.ids() == [2, 3, 4, 5]
    assert ada.pks(2) == [4, 5]
    assert ada.group(2).version != version
    assert ada.current() == {4: "mark", 5: "mark"}


def test_another_keeper_is_suggested_when_it_is_gone(ada: Reviewer) -> None:
    change(ada.path, "update _image_similarity_items set size = 800000 where id = 5")
    change(ada.path, "delete from images where id = 3")
    group = ada.group(2)
    assert [one.pk for one in group.members] == [5, 4]
    assert "800.0 KB" in group.reason
    assert ada.decide(2, "accept") == {5: "keep", 4: "mark"}


def test_without_a_suggestion_nothing_is_marked_at_once(ada: Reviewer) -> None:
    change(ada.path, "update _image_similarity_groups set keeper_id = 0 where id = 2")
    assert ada.group(2).keeper is None
    with pytest.raises(CollectionError, match="Nothing is suggested"):
        ada.decide(2, "accept")
    assert set(ada.accept("same")) == {6, 7, 9, 10, 11, 12, 13}
    assert ada.group(2).open
    assert ada.decide(2, "keep", 4) == {3: "mark", 4: "keep", 5: "mark"}


def test_a_keeper_is_open_again_in_the_next_tier(ada: Reviewer) -> None:
    put_groups(
        ada.path, [("identical", (1, 2)), ("identical", (3, 4)), ("same", (1, 3, 5))]
    )
    ada.accept("identical")
    assert (ada.tally("same").open, ada.tally("same").would_mark) == (1, 2)
    assert [one.decision for one in ada.group(3).members] == [None, None, None]
    ada.decide(3, "keep", 3)
    assert ada.current() == {1: "mark", 2: "mark", 3: "keep", 4: "mark", 5: "mark"}
    assert ada.tally("identical").open == 0
    ada.undo()
    ada.accept("same")
    assert ada.current() == {1: "keep", 2: "mark", 3: "mark", 4: "mark", 5: "mark"}


def test_what_is_marked_in_a_surer_tier_stays_marked_in_the_next(ada: Reviewer) -> None:
    put_groups(ada.path, [("identical", (1, 2)), ("same", (1, 3))])
    ada.decide(1, "keep", 2)
    assert [one.decision for one in ada.group(2).members] == ["mark", None]
    assert ada.accept("same") == {}


def test_a_bulk_accept_leaves_groups_without_their_keeper_open(ada: Reviewer) -> None:
    change(ada.path, "delete from images where id = 3")
    assert set(ada.accept("same")) == {6, 7, 9, 10, 11, 12, 13}


def test_a_picture_of_another_group_cannot_be_decided_there(ada: Reviewer) -> None:
    for action in ("keep", "mark", "unmark"):
        with pytest.raises(GroupChanged):
            ada.decide(2, action, 7)
    with pytest.raises(GroupChanged):
        ada.split(2, 7)
    assert ada.current() == {}


def test_a_group_is_found_by_its_pictures(ada: Reviewer) -> None:
    assert decisions.group_with(ada.conn, ada.collection, [7]) == 3
    assert decisions.group_with(ada.conn, ada.collection, [3, 4, 7]) == 2
    assert decisions.group_with(ada.conn, ada.collection, [24]) is None


def test_compound_keys_can_be_split_and_marked(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "compound.db"
    change(path, 'create table images ("a b" text, n, path text, primary key ("a b", n))')
    names = sorted(str(file.relative_to(photos)) for file in photos.rglob("*.png"))
    for number, name in enumerate(names[:4]):
        change(path, f"insert into images values ('x,\"y', {number}, '{name}')")
    embed(path, path_column="path", root=photos)
    put_groups(path, [("same", (1, 2, 3))])
    ada = Reviewer(path)
    with closing(ada.conn):
        first, second, third = ada.pks(1)
        ada.split(1, third)
        assert ada.pks(1) == [first, second]
        assert ada.decide(1, "keep", second) == {first: "mark", second: "keep"}
        assert ada.current() == {first: "mark", second: "keep"}


def test_an_older_schema_has_no_groups(copied: Path) -> None:
    make_older(copied)
    ada = Reviewer(copied)
    with closing(ada.conn):
        assert (ada.ids(), ada.current()) == ([], {})
        assert decisions.last_scan(ada.conn, ada.collection) is None


def test_the_finder_goes_by_what_was_decided(tmp_path: Path, photos: Path) -> None:
    for number in range(3):
        data = (photos / "red" / f"red-{number}.png").read_bytes()
        (photos / f"copy-{number}.png").write_bytes(data)
    path = tmp_path / "found.db"
    embed(path, photos)
    ada = Reviewer(path)
    with closing(ada.conn):

        def find() -> list[int]:
            find_duplicates(ada.conn, ada.collection)
            found = decisions.summaries(ada.conn, ada.collection)
            return [one.id for one in found if one.tier == "identical"]

        first, second, _ = find()
        kept, marked = ada.pks(first)
        ada.decide(first, "keep", marked)
        ada.split(second, ada.pks(second)[0])
        ids = find()
        assert len(ids) == 2
        assert [ada.group(id).open for id in ids].count(False) == 1
        assert ada.current() == {kept: "mark", marked: "keep"}
        ada.undo()
        assert len(find()) == 3


def test_an_export_lists_what_was_decided(ada: Reviewer, tmp_path: Path) -> None:
    ada.decide(2, "keep", 4)
    ada.decide(3, "skip")
    ada.split(4, 11)
    with ImageCollection(ada.path) as collection:
        collection.export_decisions(tmp_path / "decided.csv")
    with (tmp_path / "decided.csv").open() as file:
        rows = {int(row["pk"]): row["decision"] for row in csv.DictReader(file)}
    assert rows == ada.current() == {3: "mark", 4: "keep", 5: "mark", 6: "skip", 7: "skip"}


@pytest.mark.parametrize("table", ["shown", "passing", "log"])
def test_a_table_of_a_name_that_queries_might_use(
    tmp_path: Path, photos: Path, table: str
) -> None:
    copy = photos / "red" / "again.png"
    copy.write_bytes((photos / "red" / "red-0.png").read_bytes())
    path = tmp_path / "own.db"
    embed(path, [photos], table)
    with ImageCollection(path, table) as collection:
        assert collection.duplicates().of_tier("identical")
    reviewer = Reviewer(path)
    with closing(reviewer.conn):
        assert reviewer.tally("identical").groups == 1
        assert len(reviewer.accept("identical")) == 2
