"""The budget, from recorded files of both cgroup versions and real resource limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.core.settings import MIB
from tidegate.machine import budget

MACHINES = Path(__file__).parent / "machines"  # written after such machines, shortened
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


@pytest.mark.parametrize(
    ("name", "limit", "set_by", "used"),
    [
        ("debian-12-service", 448, "v2 limit (memory.high", 240),
        ("docker-v2", 256, "v2 limit (memory.max", 80),
        ("docker-v1", 200, "v1 limit (memory.limit_in_bytes", 100),
        ("hybrid-memory-on-v1", 300, "v1 limit (memory.limit_in_bytes", 125),
        ("lxc", 1024, "v2 limit (memory.max", 300),
    ],
)
def test_the_limit_of_each_kind_of_machine(name: str, limit: int, set_by: str, used: int) -> None:
    """The smallest limit is found on each, with who sets it and what counts."""
    found = budget.find(None, MACHINES / name)
    assert (found.bytes, found.hard, found.ignored) == (limit * MIB, True, ())
    assert set_by in found.source
    assert found.cgroup is not None
    assert found.cgroup.used_bytes() == used * MIB


def test_a_kernel_without_the_memory_controller_sets_no_limit() -> None:
    """Groups without any memory file are normal: the guess, and nothing that was ignored."""
    found = budget.find(None, MACHINES / "raspberry-pi-no-memory-controller")
    assert (found.bytes, found.hard, found.ignored) == (512 * MIB, False, ())
    assert found.source == "no limit found: a quarter of this computer's memory"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a number"),
        ("\n", "not a number"),
        ("max max\n", "not a number"),
        ("-1\n", "not a number"),
        ("1_000_000_000", "not a number"),
        ("\u0661\u0662\u0663", "not a number"),
        ("0x40000000\n", "not a number"),
        ("1e9\n", "not a number"),
        ("0\n", "a limit of nothing"),
        ("5" * 10_000, None),
        ("max", None),
        ("9223372036854771712\n", None),
    ],
)
def test_a_limit_that_cannot_be_understood_is_ignored_and_logged(
    tmp_path: Path, text: str, why: str | None
) -> None:
    """The file and the reason are told, the next group's limit still counts, nothing fails."""
    root = machine(
        tmp_path, "0::/a\n", [V2_MOUNT], {"a/memory.max": text, "memory.max": f"{256 * MIB}\n"}
    )
    (root / "proc/meminfo").write_text("MemTotal: 4194304 kB\n")
    found = budget.find(None, root)
    assert found.bytes == 256 * MIB
    if why is None:
        assert found.ignored == ()
    else:
        assert len(found.ignored) == 1
        assert "memory.max" in found.ignored[0]
        assert why in found.ignored[0]


def test_a_limit_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A directory in the file's place stands for whatever else may go wrong with it."""
    root = machine(tmp_path, "0::/a\n", [V2_MOUNT], {"a/memory.max/x": ""})
    assert any("memory.max" in why for why in budget.find(None, root).ignored)


def test_more_than_the_machine_has_is_no_limit(tmp_path: Path) -> None:
    """A limit above all the memory there is limits nothing; as much as there is, it does."""
    root = machine(tmp_path, "0::/a\n", [V2_MOUNT], {"a/memory.max": f"{(2 << 30) + 4096}\n"})
    (root / "proc/meminfo").write_text("MemTotal: 2097152 kB\n")
    found = budget.find(None, root)
    assert (found.bytes, found.hard) == (512 * MIB, False)
    assert "more than this computer has" in found.ignored[0]
    (root / "sys/fs/cgroup/a/memory.max").write_text(f"{2 << 30}\n")
    assert budget.find(None, root).bytes == 2 << 30


@pytest.mark.parametrize(
    ("cgroups", "mounts"),
    [
        ("", []),
        ("\n:::\nx\n0:\n", [V2_MOUNT]),
        ("0::/a\n", ["", "30 20", " - ", "x - cgroup2", "1 2 3 4 5 6 - cgroup2"]),
        ("0::relative\n", [V2_MOUNT]),
        ("0::/\udcff\n", [V2_MOUNT.replace(" / ", " /\udcfe ")]),
    ],
)
def test_strange_tables_of_the_kernel_hide_a_limit_and_break_nothing(
    tmp_path: Path, cgroups: str, mounts: list[str]
) -> None:
    """Lines that are cut short or of another alphabet are passed over."""
    root = machine(tmp_path, "", [], {"memory.min": "0"})
    (root / "proc/self/cgroup").write_bytes(cgroups.encode(errors="surrogateescape"))
    (root / "proc/self/mountinfo").write_bytes("\n".join(mounts).encode(errors="surrogateescape"))
    assert not budget.find(None, root).hard


def test_a_neighbour_of_almost_our_name_is_not_our_group(tmp_path: Path) -> None:
    """A mount of /docker/ab shows nothing of /docker/abc but its own top."""
    mount = V2_MOUNT.replace(" / ", " /docker/ab ", 1)
    root = machine(
        tmp_path, "0::/docker/abc\n", [mount], {"c/memory.max": f"{MIB}", "memory.max": "max"}
    )
    assert not budget.find(None, root).hard


def test_the_mount_that_shows_our_group_is_taken(tmp_path: Path) -> None:
    """Of two mounts of one hierarchy the one that our group lies in counts, blanks and all."""
    other = V2_MOUNT.replace(" / /sys/fs/cgroup ", " /other /sys/fs/cgroup/o ", 1)
    ours = V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/our\\040own ", 1)
    root = machine(
        tmp_path,
        "0::/a\n",
        [other, ours],
        {"o/memory.max": f"{9 * MIB}", "our own/a/memory.max": f"{256 * MIB}\n"},
    )
    assert budget.find(None, root).bytes == 256 * MIB


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


def test_a_setting_under_the_least_counts_as_the_least(tmp_path: Path) -> None:
    """It was allowed once; what the system enforces stays what it is."""
    found = budget.find(128 * MIB, machine(tmp_path / "a", "0::/\n", [V2_MOUNT], {}))
    assert (found.bytes, found.hard) == (200 * MIB, True)
    assert found.source == "setting memory.budget, which counts as the least, 200 MiB"
    limited = {"a/memory.max": f"{100 * MIB}"}
    root = machine(tmp_path / "b", "0::/a\n", [V2_MOUNT], limited)
    assert budget.find(128 * MIB, root).bytes == 100 * MIB


def test_a_guess_is_at_least_the_least(tmp_path: Path) -> None:
    """A quarter of a very small computer would not do."""
    root = machine(tmp_path, "0::/\n", [V2_MOUNT], {})
    (root / "proc/meminfo").write_text(f"MemTotal: {512 * 1024} kB\n")
    found = budget.find(None, root)
    assert (found.bytes, found.hard) == (200 * MIB, False)
    assert found.source == "no limit found: the least that will do"


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
        "import resource; from tidegate.machine import budget;"
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20));"
        "b = budget.find(None); print(b.bytes >> 20, b.source)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "900 RLIMIT_AS of this process\n"
