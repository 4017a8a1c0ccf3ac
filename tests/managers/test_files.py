"""The files of an installation: told apart from what a person wrote, replaced whole, never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.managers import files
from tidegate.managers.files import File, FileChange, WriteError, marked


def comment(text: str) -> str:
    return f"# {text}"


@pytest.fixture
def file(tmp_path: Path) -> File:
    """One of ours that is not there yet, in a directory that is not there either."""
    return File(tmp_path / "units" / "a.service", marked("[Unit]\nDescription=a\n", comment))


def test_new_file_is_written_for_all_to_read(file: File) -> None:
    """What was not there is written with its directory, 0644 whatever the umask."""
    assert file.compare() is FileChange.NEW
    assert file.write() is None
    assert file.path.read_text() == file.text
    assert file.path.stat().st_mode & 0o777 == 0o644
    assert file.compare() is FileChange.NONE


def test_what_a_version_of_ours_wrote_is_replaced(file: File) -> None:
    """An older text of ours gives way, and nothing is left beside the new one."""
    File(file.path, marked("[Unit]\nDescription=older\n", comment)).write()
    assert file.compare() is FileChange.OURS
    assert file.write() is None
    assert [path.name for path in file.path.parent.iterdir()] == ["a.service"]


@pytest.mark.parametrize(
    "theirs",
    [
        "[Unit]\nDescription=by hand\n",
        marked("[Unit]\nDescription=a\n", comment) + "Nice=5\n",
        marked("[Unit]\nDescription=a\n", comment).replace("=a", "=b"),
        marked("[Unit]\nDescription=a\n", comment).replace("sha256 ", "sha256 0"),
        "\udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"),
        "",
    ],
)
def test_what_a_person_wrote_or_changed_is_kept(file: File, theirs: str) -> None:
    """A text that no version of ours wrote is kept beside the new one, byte for byte."""
    file.path.parent.mkdir()
    file.path.write_text(theirs, errors="surrogateescape")
    assert file.compare() is FileChange.THEIRS
    kept = file.write()
    assert kept is not None
    assert kept.name.startswith("a.service.bak-")
    assert kept.read_text(errors="surrogateescape") == theirs
    assert file.compare() is FileChange.NONE


def test_two_kept_in_one_second_do_not_meet(file: File) -> None:
    """Each kept file has a name of its own."""
    kept = set()
    for n in range(3):
        file.path.parent.mkdir(exist_ok=True)
        file.path.write_text(f"by hand {n}")
        kept.add(file.write())
    assert len(kept) == 3


def test_symbolic_link_is_kept_and_not_followed(file: File, tmp_path: Path) -> None:
    """A link that its owner made is moved away; what it points to is never written."""
    target = tmp_path / "dotfiles.service"
    target.write_text(file.text)
    file.path.parent.mkdir()
    file.path.symlink_to(target)
    assert file.compare() is FileChange.THEIRS
    kept = file.write()
    assert kept is not None
    assert kept.is_symlink()
    assert not file.path.is_symlink()
    assert target.read_text() == file.text


def test_difference_shows_what_changes_and_not_the_mark(file: File) -> None:
    """The diff is of what matters: the hash is left out on both sides."""
    File(file.path, marked("[Unit]\nDescription=older\n", comment)).write()
    shown = file.difference()
    assert "-Description=older\n+Description=a\n" in shown
    assert "sha256" not in shown


def test_removing_ours_leaves_nothing(file: File) -> None:
    """What we wrote is removed; a second time there is nothing to remove."""
    file.write()
    assert files.remove(file.path) is None
    assert files.remove(file.path) is None
    assert list(file.path.parent.iterdir()) == []


def test_removing_keeps_what_was_changed(file: File) -> None:
    """A file that was edited after we wrote it is moved aside instead of removed."""
    file.write()
    file.path.write_text(file.text + "Nice=5\n")
    kept = files.remove(file.path)
    assert kept is not None
    assert kept.read_text().endswith("Nice=5\n")
    assert not file.path.exists()


def test_mark_may_stand_on_any_line() -> None:
    """The mark goes where the format allows a comment, and the rest stays as it was."""
    text = "<?xml?>\n<!DOCTYPE>\n<plist/>\n"
    whole = marked(text, lambda mark: f"<!-- {mark} -->", 2)
    assert whole.splitlines()[2].startswith("<!-- tidegate wrote this file, sha256 ")
    assert files.unmarked(whole) == text


def test_what_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    """A directory that is a file is said by name."""
    (tmp_path / "units").write_text("")
    with pytest.raises(WriteError, match="units"):
        File(tmp_path / "units" / "a.service", "x\n").write()
