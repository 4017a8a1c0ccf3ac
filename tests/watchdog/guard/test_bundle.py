"""Bundles as files: their names, their bounds, their form."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tidegate.watchdog.guard import bundle

AT = 1795391112.0  # 2026-11-22 23:45:12 UTC


def sizes(directory: Path) -> list[int]:
    return [path.stat().st_size for path in directory.iterdir()]


def test_a_name_says_when_and_why() -> None:
    """And nothing but letters, digits and dashes comes from the reason."""
    assert bundle.new_name("recycle", "memory", AT, set()) == "20261122T234512Z-recycle-memory.json"
    odd = bundle.new_name("kill", "../../no heartbeat\nfor 10 s, " + "x" * 300, AT, set())
    assert odd == "20261122T234512Z-kill-no-heartbeat-for-10-s-xxxxxxxxxxxxx.json"


def test_names_of_one_second_differ_and_sort_by_time() -> None:
    """Two bundles in one second are two files, in the order in which they were made."""
    taken: set[str] = set()
    made = []
    for kind in ("z", "y", "x", "z"):
        made.append(bundle.new_name(kind, "r", AT, taken))
        taken.add(made[-1])
    made.append(bundle.new_name("a", "r", AT + 1, taken))
    assert made == sorted(set(made))


def test_many_of_one_second_are_kept_in_their_order(tmp_path: Path) -> None:
    """Also when the first of them are gone already."""
    paths = [bundle.write(tmp_path, {"n": n}, "kill", "hung", AT) for n in range(20)]
    assert sorted((tmp_path / "bundles").iterdir()) == paths[-8:]


def test_a_bundle_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask: 0700 for the directory, 0600 for the file."""
    former = os.umask(0)
    try:
        path = bundle.write(tmp_path, {"format": 1}, "kill", "hung", AT)
    finally:
        os.umask(former)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text()) == {"format": 1}


def test_at_most_eight_are_kept_and_the_oldest_go(tmp_path: Path) -> None:
    """So that evidence cannot fill a disk."""
    paths = [bundle.write(tmp_path, {"n": n}, "kill", "hung", AT + n) for n in range(12)]
    assert sorted((tmp_path / "bundles").iterdir()) == paths[-8:]


def test_together_they_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum counts, also of files that a former version left."""
    monkeypatch.setattr(bundle, "MAX_TOTAL_BYTES", 3000)
    directory = tmp_path / "bundles"
    directory.mkdir()
    (directory / "20200101T000000Z-old.json").write_bytes(b"x" * 100_000)
    for n in range(5):
        path = bundle.write(tmp_path, {"text": "x" * 1000}, "a", "b", AT + n)
        assert path.exists()
        assert sum(sizes(directory)) <= 3000


def test_what_is_too_long_is_shortened_and_says_so() -> None:
    """Of what runs with time the end stays, of other lists the beginning."""
    sections = {
        "why": "w",
        "samples": [[n, "x" * 500] for n in range(4000)],
        "runs": [{"n": n} for n in range(300)],
        "workers": {"worker 1": {"stacks": [[f"frame {n}"] for n in range(300)]}},
    }
    document = bundle.fit(sections)
    read = json.loads(document)
    assert len(document) <= bundle.MAX_BUNDLE_BYTES
    assert "too long" in read["shortened"]
    assert read["why"] == "w"
    assert read["samples"][-1][0] == 3999
    assert [run["n"] for run in read["runs"]] == list(range(100))
    assert len(read["workers"]["worker 1"]["stacks"]) == 100


def test_even_one_endless_text_does_not_make_it_too_long() -> None:
    """What cannot be shortened is left out."""
    document = bundle.fit({"why": "w", "huge": "x" * 3_000_000, "rows": ["y" * 3_000_000]})
    assert len(document) <= bundle.MAX_BUNDLE_BYTES
    assert json.loads(document)["why"] == "w"


def test_rows_take_a_line_each() -> None:
    """A person reads it: lists one item a line, the rest indented."""
    text = bundle.render({"samples": [[1, 2], [3, 4]], "status": {"state": "serving"}}).decode()
    assert "\n[1,2],\n[3,4]\n" in text
    assert '\n  "state": "serving"\n' in text


def test_what_was_never_finished_is_removed(tmp_path: Path) -> None:
    """A watchdog that was killed while it wrote leaves nothing behind for ever."""
    bundle.write(tmp_path, {}, "a", "b", AT)
    half = tmp_path / "bundles" / ".unfinished-20261122T234511Z-a.json"
    half.write_bytes(b"{")
    path = bundle.write(tmp_path, {}, "a", "b", AT)
    assert not half.exists()
    assert path.exists()


def test_a_full_disk_leaves_no_half_of_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes out, and no file with or without a name stays."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        bundle.write(tmp_path, {"format": 1}, "kill", "hung", AT)
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"format": 99}', b'{"decisions": []}', b"\xff"]
)
def test_what_is_no_bundle_has_no_decisions(text: bytes) -> None:
    """Whatever file we are given to read."""
    assert bundle.read_decisions(text) is None


def test_a_bundle_steers_no_terminal(tmp_path: Path) -> None:
    """What an upstream said is in it as escapes, within its bounds, and reads as it was said."""
    said = "\x1b[2J\x9b\u202e\u2028" * 1000
    path = bundle.write(tmp_path, {"runs": [{"reason": said}], "b": {said: 1}}, "kill", "hung", AT)
    text = path.read_text()
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"runs": [{"reason": said}], "b": {said: 1}}
    assert path.stat().st_size <= bundle.MAX_BUNDLE_BYTES
