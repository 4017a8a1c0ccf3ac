"""The kernel's own files about processes, groups and pressure, recorded and real."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tidegate.watchdog.guard import kernel


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc elsewhere")
def test_a_live_process_shows_its_memory_and_where_it_waits() -> None:
    """Of this very one: several lines as a list, one as a text."""
    shown = kernel.of_process(os.getpid())
    assert any(line.startswith("VmRSS:") for line in shown["status"])
    assert any(line.startswith("Max open files") for line in shown["limits"])
    assert isinstance(shown["oom_score_adj"], str)
    [rollup] = kernel.memory_map(os.getpid()).values()
    assert any(line.startswith("Private_Dirty:") for line in rollup)


def test_a_process_that_is_gone_shows_nothing() -> None:
    """It is no error: it may have died a moment ago."""
    assert kernel.of_process(2**22 + 1) == {}
    assert kernel.memory_map(2**22 + 1) == {}


def test_neither_arguments_nor_environment_are_read(tmp_path: Path) -> None:
    """Both may hold keys."""
    for name in ("cmdline", "environ", "status"):
        write(tmp_path / "proc/7" / name, f"CANARY-{name}")
    assert kernel.of_process(7, tmp_path) == {"status": "CANARY-status"}


def test_our_control_group_is_found_in_both_versions(tmp_path: Path) -> None:
    """Its figures are shown under its path; what a version does not have is left out."""
    write(tmp_path / "proc/self/cgroup", "9:cpu:/x\n4:memory:/old/us\n0::/new/us\n")
    write(tmp_path / "sys/fs/cgroup/new/us/memory.current", "123\n")
    shown = kernel.control_group(tmp_path)
    assert shown == {"path": f"{tmp_path}/sys/fs/cgroup/new/us", "memory.current": "123"}
    (tmp_path / "sys/fs/cgroup/new/us/memory.current").unlink()
    write(tmp_path / "sys/fs/cgroup/memory/old/us/memory.limit_in_bytes", "9\n")
    assert kernel.control_group(tmp_path)["memory.limit_in_bytes"] == "9"


@pytest.mark.parametrize("text", [b"", b"garbage\n", b"0:x\n", b"0::/../..\n\x00", b"0::/\xff\n"])
def test_a_strange_control_group_is_none(tmp_path: Path, text: bytes) -> None:
    """Evidence is gathered without it."""
    write(tmp_path / "proc/self/cgroup", "")
    (tmp_path / "proc/self/cgroup").write_bytes(text)
    assert kernel.control_group(tmp_path) == {}


def test_a_file_is_read_to_its_bound(tmp_path: Path) -> None:
    """However long it is."""
    write(tmp_path / "proc/pressure/memory", "some avg10=0.00\n" * 10_000)
    shown = kernel.pressure(tmp_path)["memory"]
    assert sum(map(len, shown)) < kernel.MAX_FILE_BYTES
