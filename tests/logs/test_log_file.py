"""The log file: rotated by one, followed by all, bounded by everybody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidegate.logs.file import LogFile, family

LIMIT_S = 30.0
WRITER = """
import logging, sys
from pathlib import Path
from tidegate.logs.handler import LineHandler
from tidegate.logs.file import LogFile
from tidegate.logs import repeats
from tidegate.logs import writer as log_writer
repeats.MOST_KINDS = repeats.MOST_A_MINUTE = 1 << 30  # and writes every line
log_writer.QUEUE_BYTES = 1 << 30  # this one may remember everything
log_writer.LOOK_S = 0.02
_, name, file, lines, rotate_bytes = sys.argv
target = LogFile(Path(file), rotates=name == "watchdog", rotate_bytes=int(rotate_bytes))
log = logging.getLogger()
log.addHandler(handler := LineHandler(name, target, journal=False))
log.setLevel(logging.INFO)
words = ["".join(chr(97 + n // 26**i % 26) for i in range(3)) for n in range(26**3)]
for n in range(int(lines)):
    log.info("%s says %s of %s", name, words[n % 26**3] + "x" * 40, words[n // 100])
print("said", flush=True)
if name == "watchdog":
    sys.stdin.read()
sys.exit(0 if handler.writer.settle(60) else 1)
"""


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Descriptors in stderr's place."""
    opened: list[int] = []

    def make() -> int:
        opened.append(os.open(os.devnull, os.O_WRONLY))
        return opened[-1]

    yield make
    for fd in opened:
        os.close(fd)


def test_file_is_rotated_and_followed(tmp_path: Path, fds: Callable[[], int]) -> None:
    """The watchdog rotates at the size, keeps two more, and the worker follows to the new file."""
    file = tmp_path / "log"
    ours = LogFile(file, rotates=True, fd=fds(), rotate_bytes=2000)
    theirs = LogFile(file, rotates=False, fd=fds(), rotate_bytes=2000)
    for n in range(200):
        for each, line in ((ours, f"ours {n:100}\n"), (theirs, f"theirs {n:100}\n")):
            assert each.maintain() is None
            assert each.has_room()
            assert each.write([line.encode()]) == 1
    assert sorted(tmp_path.iterdir()) == sorted(family(file))
    assert file.read_text().endswith(f"ours {199:100}\ntheirs {199:100}\n")
    assert all(path.stat().st_size < 2400 for path in family(file))
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in family(file))


def test_full_file_has_no_room_until_it_is_rotated(tmp_path: Path, fds: Callable[[], int]) -> None:
    """What floods between two rotations cannot make the file much larger than it may be."""
    file = tmp_path / "log"
    ours = LogFile(file, rotates=True, fd=fds(), rotate_bytes=2000)
    theirs = LogFile(file, rotates=False, fd=fds(), rotate_bytes=2000)
    while theirs.has_room():
        theirs.write([b"x" * 99 + b"\n"])
    assert file.stat().st_size == 2200
    theirs.maintain()
    assert not theirs.has_room()
    ours.maintain()
    theirs.maintain()
    assert theirs.has_room()


def test_removed_file_is_made_again(tmp_path: Path, fds: Callable[[], int]) -> None:
    """An owner who deletes the log gets a new one."""
    made = LogFile(tmp_path / "log", rotates=False, fd=fds())
    (tmp_path / "log").unlink()
    made.maintain()
    made.write([b"still here\n"])
    assert (tmp_path / "log").read_text() == "still here\n"


def test_link_stays_a_link(tmp_path: Path, fds: Callable[[], int]) -> None:
    """Who keeps the log on another disk by a link keeps the rotated ones there too."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "log").symlink_to(tmp_path / "disk" / "log")
    made = LogFile(tmp_path / "log", rotates=True, fd=fds(), rotate_bytes=10)
    for _ in range(3):
        made.write([b"0123456789\n"])
        made.maintain()
    assert (tmp_path / "log").is_symlink()
    assert (tmp_path / "disk" / "log.2").exists()


def test_log_must_be_a_regular_file(tmp_path: Path, fds: Callable[[], int]) -> None:
    """A directory or a named pipe is refused at the start."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"fifo|No such device"):
        LogFile(tmp_path / "fifo", rotates=False, fd=fds())
    with pytest.raises(IsADirectoryError):
        LogFile(tmp_path, rotates=False, fd=fds())


def test_file_that_cannot_be_rotated_begins_again_and_says_so(
    tmp_path: Path, fds: Callable[[], int]
) -> None:
    """A directory in the way: the bound holds, and the line says what it cost."""
    file = tmp_path / "log"
    for name in ("log.1", "log.2"):
        (tmp_path / name / "x").mkdir(parents=True)
    made = LogFile(file, rotates=True, fd=fds(), rotate_bytes=100)
    made.write([b"x" * 200 + b"\n"])
    said = made.maintain()
    assert said is not None
    assert "201 bytes of it were dropped" in said
    assert file.stat().st_size == 0
    made.write([b"on\n"])
    assert file.read_text() == "on\n"


def test_stdout_follows_where_it_was_the_same_file(tmp_path: Path) -> None:
    """`start` sends both to the log; neither may keep a rotated file alive."""
    script = (
        "import os, sys; from pathlib import Path; from tidegate.logs.file import LogFile\n"
        "made = LogFile(Path(sys.argv[1]), rotates=True, rotate_bytes=5)\n"
        "os.write(1, b'before\\n'); made.maintain(); os.write(1, b'after\\n')\n"
    )
    file = tmp_path / "log"
    with file.open("ab") as log:
        command = [sys.executable, "-c", script, str(file)]
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=LIMIT_S)
    assert file.with_name("log.1").read_text() == "before\n"
    assert file.read_text() == "after\n"


@pytest.mark.parametrize(("workers", "lines"), [(2, 2500)])
def test_concurrent_writers_lose_and_tear_no_line(tmp_path: Path, workers: int, lines: int) -> None:
    """Real processes and several rotations: every line is there, whole and once."""
    file = tmp_path / "log"
    rotate_bytes = 250_000

    def start(name: str, lines: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", WRITER, name, str(file), str(lines), str(rotate_bytes)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    watchdog = start("watchdog", 10)
    try:
        assert watchdog.stdout is not None
        assert watchdog.stdout.readline() == b"said\n"
        others = [start(f"worker {n}", lines) for n in range(workers)]
        largest = 0
        deadline_s = time.monotonic() + LIMIT_S
        while any(other.poll() is None for other in others):
            largest = max(largest, _size(file))
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        assert [other.returncode for other in others] == [0] * workers
        for other in others:
            other.communicate()
    finally:
        watchdog.communicate(b"", timeout=LIMIT_S)
    assert file.with_name("log.1").exists(), "it was rotated"
    text = "".join(path.read_text() for path in reversed(family(file)) if path.exists())
    counts = {f"worker {n}": 0 for n in range(workers)}
    for line in text.splitlines():
        found = re.fullmatch(
            r"\S+ info (watchdog|worker \d) "
            r"(watchdog|worker \d) says \w{43} of \w{3}",
            line,
        )
        assert found, line
        assert found[1] == found[2], "no line holds a piece of another one"
        if found[1] in counts:
            counts[found[1]] += 1
    assert counts == {f"worker {n}": lines for n in range(workers)}
    assert largest <= rotate_bytes * 1.1 + (workers + 1) * LogFile.batch_bytes


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # it is being rotated
        return 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_takes_whole_lines_and_goes_on_later(
    small_disk: Path, fds: Callable[[], int]
) -> None:
    """Half a line that still fitted is ended when there is room, and the line is written anew."""
    ballast = small_disk / "ballast"
    made = LogFile(small_disk / "log", rotates=False, fd=fds())
    ballast.write_bytes(b"x" * (56 * 1024))
    lines = [f"{n:>1000}\n".encode() for n in range(10)]
    written = made.write(lines)
    with pytest.raises(OSError, match="No space left"):
        made.write(lines[written:])
    ballast.unlink()
    assert made.write(lines[written:]) == len(lines) - written
    found = (small_disk / "log").read_bytes().splitlines(keepends=True)
    assert [line for line in found if line in lines] == lines
    assert len(found) <= len(lines) + 1
