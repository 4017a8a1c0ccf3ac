"""Kept descriptors: read again, gone stale, found again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from fakes.failing_calls import open_descriptors
from tidegate.machine import procfile


def test_each_reading_is_a_new_one(tmp_path: Path) -> None:
    """The descriptor is kept, what it says is not."""
    path = tmp_path / "memory.current"
    path.write_text("1\n")
    file = procfile.KeptFile(path)
    assert file.parse(procfile.number) == 1
    before = open_descriptors()
    path.write_text("22\n")
    assert file.parse(procfile.number) == 22
    assert open_descriptors() == before
    file.close()
    file.close()
    assert len(open_descriptors()) == len(before) - 1
    assert file.parse(procfile.number) == 22  # opened again
    file.close()


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ESTALE, errno.ENOENT])
def test_a_stale_descriptor_is_replaced_at_once(tmp_path: Path, code: int) -> None:
    """A control group that was removed and came back is read in the same call."""
    path = tmp_path / "memory.current"
    path.write_text("1\n")
    file = procfile.KeptFile(path)
    file.read()
    path.unlink()
    path.write_text("2\n")
    before = open_descriptors()
    with mock.patch.object(os, "pread", side_effect=[OSError(code, "stale"), b"2\n"]) as pread:
        assert file.read() == b"2\n"
    assert pread.call_count == 2
    assert open_descriptors() == before
    assert file.read() == b"2\n"
    file.close()


@pytest.mark.skipif(not os.access("/proc/self/statm", os.R_OK), reason="statm is Linux's")
def test_a_vanished_file_is_said_and_its_descriptor_given_back(tmp_path: Path) -> None:
    """What is not there is named in the error, with the kernel's reason."""
    file = procfile.KeptFile(tmp_path / "memory.current")
    before = open_descriptors()
    with pytest.raises(procfile.UnreadableFigure, match=r"memory\.current of .*: No such file"):
        file.parse(procfile.number)
    assert open_descriptors() == before


@pytest.mark.parametrize("text", [b"", b" ", b"-1", b"+1", b"1_0", b"1 2", b"0x1", b"1.0", b"\xff"])
def test_what_is_no_number(text: bytes) -> None:
    """Only digits are: the kernel writes nothing else."""
    with pytest.raises(ValueError, match="not a number"):
        procfile.number(text)


def test_a_long_table_is_read_to_its_end(tmp_path: Path) -> None:
    """The kernel gives a table out by the page, so one reading is not all of it."""
    path = tmp_path / "mountinfo"
    path.write_bytes(b"x" * 100_000 + b"end")
    assert procfile.read_whole(path).endswith(b"xend")
    path.write_bytes(b"x" * 10_000_000)
    assert len(procfile.read_whole(path)) <= 4 << 20
