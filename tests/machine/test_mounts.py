"""Whether a directory is in memory, by the kernel's own word and by odd ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.failing_calls import ERRORS, fail_each
from tidegate.machine.mounts import is_in_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
SHM = Path("/dev/shm")


def lines(*mounts: bytes) -> bytes:
    return b"\n".join(mounts) + b"\n"


def mount(folder: Path, kind: bytes, *, optional: bytes = b"shared:5 ") -> bytes:
    """A line for the file system that `folder` is on."""
    number = folder.stat().st_dev
    device = b"%d:%d" % (os.major(number), os.minor(number))
    return b"36 35 " + device + b" / /a\\040b rw,noatime " + optional + b"- " + kind + b" x rw"


OTHER = b"22 1 0:21 / /proc rw - proc proc rw"


def kind_of(folder: Path) -> str:
    """What another program says of it."""
    command = ["stat", "-f", "-c", "%T", os.fspath(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("folder", [Path("/"), Path("/proc"), Path("/run"), SHM, Path(__file__)])
def test_it_is_what_the_kernel_says(folder: Path) -> None:
    """As coreutils' stat has it."""
    assert is_in_memory(folder) == (kind_of(folder) in {"tmpfs", "ramfs"})


@pytest.mark.skipif(not SHM.is_dir() or kind_of(SHM) != "tmpfs", reason="needs /dev/shm")
def test_a_folder_that_is_not_yet_there_and_a_link(tmp_path: Path) -> None:
    """It lies where its parents lie, and where a link leads."""
    assert is_in_memory(SHM / "not" / "yet")
    (tmp_path / "link").symlink_to(SHM)
    assert is_in_memory(tmp_path / "link" / "not-yet")
    assert is_in_memory(tmp_path / "not-yet") == is_in_memory(tmp_path)


@pytest.mark.parametrize(
    ("kind", "found"), [(b"tmpfs", True), (b"ramfs", True), (b"ext4", False), (b"", False)]
)
@pytest.mark.parametrize("optional", [b"", b"shared:5 ", b"shared:5 master:1 "])
def test_its_line_is_found(tmp_path: Path, kind: bytes, optional: bytes, found: bool) -> None:
    """Whatever stands before and behind it, and however many optional fields it has."""
    info = tmp_path / "mountinfo"
    info.write_bytes(lines(OTHER, mount(tmp_path, kind, optional=optional), OTHER))
    assert is_in_memory(tmp_path, info) is found


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"tmpfs",
        b" - tmpfs",
        b"- - - - - - tmpfs",
        b"\xff" * 5000,
        b"36 35 0:42",
        b" " * 4096 + b" - tmpfs x",
        OTHER,
    ],
    ids=lambda text: str(text[:12]),
)
def test_odd_content_is_no(tmp_path: Path, text: bytes) -> None:
    """A line that no kernel writes is none, and no error."""
    info = tmp_path / "mountinfo"
    info.write_bytes(text)
    assert not is_in_memory(tmp_path, info)
    info.write_bytes(text + b"\n" + mount(tmp_path, b"tmpfs"))
    assert is_in_memory(tmp_path, info)


def test_what_cannot_be_asked_is_no(tmp_path: Path) -> None:
    """No file, a directory in its place, a name that no file can have."""
    assert not is_in_memory(tmp_path, tmp_path / "missing")
    assert not is_in_memory(tmp_path, tmp_path)
    assert not is_in_memory(Path("a\0b"))
    assert not is_in_memory(Path("/proc/self/mountinfo/below-a-file"))


@pytest.mark.parametrize("code", ERRORS)
def test_whatever_call_fails_it_answers(tmp_path: Path, code: int) -> None:
    """Nothing is raised, and no descriptor is left."""
    info = tmp_path / "mountinfo"
    info.write_bytes(mount(tmp_path, b"tmpfs"))
    assert (
        fail_each(code, lambda: None, lambda _: is_in_memory(tmp_path, info), lambda _: None) >= 3
    )
    assert is_in_memory(tmp_path, info)
