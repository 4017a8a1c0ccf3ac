"""This process's allocators, asked for real."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.core.memory.report import Allocator
from tidegate.core.settings import MIB
from tidegate.machine import heap


def has_mallinfo2() -> bool:
    """Whether this C library is glibc 2.33 or later."""
    return hasattr(ctypes.CDLL(None), "mallinfo2")


needs_mallinfo2 = pytest.mark.skipif(not has_mallinfo2(), reason="glibc before 2.33, or none")


@needs_mallinfo2
def test_small_buffers_count_as_in_use_and_then_as_free() -> None:
    """Pieces below the threshold of a mapping of their own stay with malloc when they are freed."""
    read = heap.allocator_meter()
    before = read()
    held = [bytearray(20_000) for _ in range(2_000)]
    full = read()
    assert full.malloc_in_use_bytes - before.malloc_in_use_bytes > 36 * MIB
    del held[::2]  # holes between neighbours, which nothing can close
    holes = read()
    assert holes.malloc_free_bytes - full.malloc_free_bytes > 15 * MIB
    assert full.malloc_in_use_bytes - holes.malloc_in_use_bytes > 15 * MIB


@needs_mallinfo2
def test_a_large_buffer_is_a_mapping_of_its_own() -> None:
    """Above malloc's threshold, which never exceeds 32 MiB; where no freed memory is as large.

    So a process of its own is asked: what ran before in this one may have left that much.
    """
    code = (
        "from tidegate.machine import heap\n"
        "read = heap.allocator_meter()\n"
        "before = read().malloc_mapped_bytes\n"
        f"held = bytearray({48 * MIB})\n"
        "print(read().malloc_mapped_bytes - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert int(ran.stdout) >= 48 * MIB


def test_objects_count_as_blocks() -> None:
    """Python's own arenas are counted in blocks, on every machine."""
    read = heap.allocator_meter()
    gc.collect()  # what is garbage by now must not go in between
    before = read().pymalloc_blocks
    held = [object() for _ in range(50_000)]
    assert read().pymalloc_blocks - before > 45_000
    assert len(held) == 50_000


def test_another_c_library_says_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """musl, macOS and glibc before 2.33 do not know the function."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    read = heap.allocator_meter()()
    assert read == Allocator(pymalloc_blocks=read.pymalloc_blocks)
    assert read.pymalloc_blocks > 0
    heap.heap_trimmer()()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_a_trim_gives_pages_back() -> None:
    """Most of what a burst of segments left free is no longer resident afterwards."""
    code = (
        "from tidegate.machine import heap\n"
        "resident, trim = heap.resident_meter(), heap.heap_trimmer()\n"
        "held = [b'x' * 65_000 for _ in range(1_000)]\n"
        "full = resident(); kept = held[::10]; held.clear(); trim()\n"
        "print((full - resident()) >> 20, len(kept))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 40


# --- the last in line ---------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux's")
def test_a_process_volunteers_for_real() -> None:
    """The kernel's own file says so afterwards, also in a process without any privilege."""
    code = (
        "import os\n"
        "from tidegate.machine import heap\n"
        "unprivileged = (65534, 65534, 65534)\n"
        "if os.geteuid() == 0: os.setresgid(*unprivileged); os.setresuid(*unprivileged)\n"
        "import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # dumpable again: /proc is ours
        "print(heap.volunteer_for_oom(), open('/proc/self/oom_score_adj').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500", "500"]


@pytest.mark.parametrize(
    ("before", "score", "after"),
    [("0\n", 500, 500), ("-900\n", 500, 500), ("500\n", 500, 500), ("800\n", 800, 800)],
)
def test_a_score_is_raised_and_never_lowered(
    tmp_path: Path, before: str, score: int, after: int
) -> None:
    """Lowering would need a privilege, and would betray who set it."""
    file = tmp_path / "oom_score_adj"
    file.write_text(before)
    assert heap.volunteer_for_oom(file) == score
    assert int(os.fsdecode(file.read_bytes()).split()[0]) == after


@pytest.mark.parametrize("text", ["", "much"])
def test_a_strange_score_is_left_alone(tmp_path: Path, text: str) -> None:
    """As is one that is not there."""
    file = tmp_path / "oom_score_adj"
    assert heap.volunteer_for_oom(file) is None
    file.write_text(text)
    assert heap.volunteer_for_oom(file) is None
    assert file.read_text() == text
