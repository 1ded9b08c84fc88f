"""The model of a disk that the power cuts of tests/torture are made with, on logs whose legal states are known."""

import pytest
from torture.disk import Create, Disk, Link, Operation, Rename, Sync, Truncate, Unlink, Write, legal_contents

A, B, NUL = b"a" * 512, b"b" * 512, b"\0" * 512


def states(before: dict[str, bytes], *operations: Operation) -> set[tuple[tuple[str, bytes], ...]]:
    """What may be on a disk that held some files, after operations and a cut."""
    disk = Disk.holding(before)
    for operation in operations:
        disk.apply(operation)
    return {tuple(sorted(state.items())) for state in disk.legal()}


def test_two_new_sectors_without_a_sync() -> None:
    """Each of them is there or NUL, or the file is as short as before."""
    found = states({"f": b""}, Write("f", 0, A + B))
    assert found == {(("f", content),) for content in (b"", A + B, NUL + B, A + NUL, NUL + NUL)}


def test_two_sectors_overwritten_without_a_sync() -> None:
    """Each of them is old or new; the length is the same."""
    found = states({"f": A + A}, Write("f", 0, B + B))
    assert found == {(("f", content),) for content in (A + A, A + B, B + A, B + B)}


def test_a_sync_makes_certain_what_was_written_before_it() -> None:
    """Nothing of the first write is missing, all of the second may be."""
    assert states({"f": b""}, Write("f", 0, A), Sync("f")) == {(("f", A),)}
    found = states({"f": b""}, Write("f", 0, A), Sync("f"), Write("f", 512, b"b"))
    assert found == {(("f", content),) for content in (A, A + b"b", A + b"\0")}


def test_lengths_on_the_way() -> None:
    """A file may be as long as it ever was, and the end that is cut off may be NUL before the length is less."""
    assert states({"f": b"abc"}, Truncate("f", 1)) == {(("f", content),) for content in (b"abc", b"a", b"a\0\0")}
    found = states({"f": b"ab"}, Truncate("f", 1), Truncate("f", 3))
    assert found == {(("f", content),) for content in (b"ab", b"a", b"a\0", b"a\0\0", b"ab\0")}


def test_whole_pages_of_a_long_write() -> None:
    """A file that grew over three pages may end at each of them."""
    found = set(legal_contents([b"", b"x" * 10_000]))
    assert {len(content) for content in found} == {0, 4096, 8192, 10_000}
    # Of 20 sectors, too many for all combinations, those of the three pages and the ends of each length.
    assert len([content for content in found if content.count(b"x") in {4096, 8192, 10_000, 10_000 - 4096}]) >= 6


def test_few_sectors_are_tried_in_all_combinations() -> None:
    """Ten sectors: each combination, at either length."""
    assert len(set(legal_contents([b"", b"x" * 4096]))) == 2**8 + 1
    assert len(set(legal_contents([b"o" * 4096, b"x" * 4096]))) == 2**8


def test_names_without_a_sync_of_their_folder() -> None:
    """A new name may be missing although its file is synced; with the folder's sync it is certain."""
    made = (Create("f"), Write("f", 0, b"a"), Sync("f"))
    assert states({}, *made) == {(), (("f", b"a"),)}
    assert states({}, *made, Sync(".")) == {(("f", b"a"),)}


def test_a_replaced_file_is_the_old_or_the_new() -> None:
    """Written beside it, synced and renamed: no third content; what is left beside it depends on the folder."""
    replaced = (Create("t"), Write("t", 0, b"new"), Sync("t"), Rename("t", "f"))
    old, new, left = ("f", b"old"), ("f", b"new"), ("t", b"new")
    assert states({"f": b"old"}, *replaced) == {(old,), (old, left), (new,)}
    assert states({"f": b"old"}, *replaced, Sync(".")) == {(new,)}


def test_a_rename_without_the_sync_of_its_file() -> None:
    """The name may be there before the content: the fault that the model is for."""
    found = states({"f": b"old"}, Create("t"), Write("t", 0, b"new"), Rename("t", "f"))
    assert (("f", b""),) in found
    assert (("f", b"\0\0\0"),) in found


def test_changes_of_different_names_in_any_order() -> None:
    """Two names are independent of each other, changes of one name keep their order."""
    found = states({"a": b"1", "b": b"2"}, Unlink("a"), Unlink("b"))
    assert found == {(), (("a", b"1"),), (("b", b"2"),), (("a", b"1"), ("b", b"2"))}
    assert states({"a": b"1"}, Link("a", "b"), Unlink("a")) == {
        (("a", b"1"),), (("a", b"1"), ("b", b"1")), (("b", b"1"),), (),
    }  # fmt: skip


def test_what_is_in_a_folder_that_is_not_there() -> None:
    """A new folder that its own folder does not know of takes along what was synced in it."""
    made = (Create("d", is_folder=True), Create("d/f"), Write("d/f", 0, b"a"), Sync("d/f"), Sync("d"))
    assert states({}, *made) == {(), (("d/f", b"a"),)}
    assert states({}, *made, Sync(".")) == {(("d/f", b"a"),)}


@pytest.mark.parametrize("number", range(7))
def test_a_run_of_sectors_is_cut_anywhere(number: int) -> None:
    """With too many combinations there are still all prefixes and suffixes, and each sector missing or alone."""
    new = [bytes([1 + index]) * 512 for index in range(7)]
    found = set(legal_contents([b"", b"".join(new)], exhaustive=1))
    missing = [NUL] * 7
    for expected in (
        [*new[:number], *missing[number:]],
        [*missing[:number], *new[number:]],
        [*new[:number], NUL, *new[number + 1 :]],
        [*missing[:number], new[number], *missing[number + 1 :]],
    ):
        assert b"".join(expected) in found
