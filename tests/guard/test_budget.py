"""The budget, from recorded files of both cgroup versions and real resource limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.core.settings import MIB
from tidegate.guard import budget

V2_MOUNT = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
STAT = "anon 1\ninactive_file {inactive}\ntotal_inactive_file {inactive}\nactive_file 9\n"


def machine(root: Path, cgroups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A root directory with the files that Linux would show."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(cgroups)
    (proc / "mountinfo").write_text("\n".join(mounts) + "\n")
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_version_2_takes_the_smallest_limit_above_us(tmp_path: Path) -> None:
    """Our own group sets none, its parent does, and so does the grandparent."""
    root = machine(
        tmp_path,
        "0::/a/b/c\n",
        [V2_MOUNT],
        {
            "a/memory.max": f"{512 * MIB}\n",
            "a/b/memory.max": f"{256 * MIB}\n",
            "a/b/c/memory.max": "max\n",
            "a/b/memory.current": f"{100 * MIB}\n",
            "a/b/memory.stat": STAT.format(inactive=30 * MIB),
        },
    )
    found = budget.find(None, root)
    assert (found.bytes, found.hard) == (256 * MIB, True)
    assert "cgroup v2" in found.source
    assert found.cgroup is not None
    assert found.cgroup.used_bytes() == 70 * MIB


def test_version_1_is_read_too(tmp_path: Path) -> None:
    """The memory controller of the old hierarchy, where "no limit" is a huge number."""
    root = machine(
        tmp_path,
        "5:devices:/x\n4:memory,other:/a/b\n0::/\n",
        [V1_MOUNT],
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/a/memory.limit_in_bytes": f"{300 * MIB}\n",
            "memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/a/memory.usage_in_bytes": f"{90 * MIB}\n",
            "memory/a/memory.stat": STAT.format(inactive=95 * MIB),
        },
    )
    found = budget.find(None, root)
    assert found.bytes == 300 * MIB
    assert found.cgroup is not None
    assert found.cgroup.used_bytes() == 0  # never negative


def test_group_above_our_namespace_is_the_root(tmp_path: Path) -> None:
    """A path with ".." lies outside what we can see: the mount's own root counts."""
    root = machine(tmp_path, "0::/../x\n", [V2_MOUNT], {"memory.max": f"{128 * MIB}\n"})
    assert budget.find(None, root).bytes == 128 * MIB


@pytest.mark.parametrize(("configured", "budgeted"), [(200, 200), (800, 256)])
def test_smaller_of_setting_and_limit(tmp_path: Path, configured: int, budgeted: int) -> None:
    """A setting above the cgroup's limit would only let the kernel kill us."""
    root = machine(tmp_path, "0::/a\n", [V2_MOUNT], {"a/memory.max": f"{256 * MIB}"})
    found = budget.find(configured * MIB, root)
    assert (found.bytes, found.hard) == (budgeted * MIB, True)
    assert ("memory.budget" in found.source) == (configured == budgeted)


def test_without_a_limit_it_is_an_explicit_guess(tmp_path: Path) -> None:
    """At most 1 GiB, said to be a guess, and not hard."""
    found = budget.find(None, machine(tmp_path, "0::/\n", [V2_MOUNT], {}))
    assert 0 < found.bytes <= 1024 * MIB
    assert not found.hard
    assert found.source.startswith("no limit found")


def test_machine_without_proc_has_no_cgroups(tmp_path: Path) -> None:
    """Elsewhere than on Linux nothing is found and nothing fails."""
    assert not budget.find(None, tmp_path).hard


def test_resource_limit_counts() -> None:
    """A real RLIMIT_AS of this size becomes the budget of the process that has it."""
    code = (
        "import resource; from tidegate.guard import budget;"
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20));"
        "b = budget.find(None); print(b.bytes >> 20, b.source)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "900 RLIMIT_AS of this process\n"
