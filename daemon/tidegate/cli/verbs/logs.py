"""`tidegate logs`: what this tidegate has logged, wherever that is.

The running watchdog knows where its log goes. When none runs, the place of `tidegate start` is
looked at, and the journal; the one that was written last is meant. `show_file` and
`show_journal` show either in the same form.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from msgspec import Struct

from tidegate.cli.failure import NOT_RUNNING, REFUSED, USAGE, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show.decode import read_status
from tidegate.cli.show.log_reader import PROCESS, Line, LogReader, parse
from tidegate.cli.show.printable import printable, say, say_json
from tidegate.cli.verbs.ask import ask
from tidegate.config.places import Places
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.protocol.status import Status
from tidegate.logs.file import family
from tidegate.managers.job import NAME, Scope

LINES = 50  # a screen, unless `--since` says how far back
POLL_S = 0.25
STATUS_LIMIT_S = 2.0
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_OURS = re.compile(rf"({PROCESS}) (.*)")
_LEVELS = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")


class LogQuery(Struct, frozen=True, kw_only=True):
    """The lines of a log that are asked for, and in which form."""

    lines: int | None = LINES  # the last so many; None: all
    since: float | None = None  # Unix seconds
    follow: bool = False
    json: bool = False


def read_arguments(arguments: argparse.Namespace) -> LogQuery:
    """Read from the flags which lines to show. Raises CliError."""
    since = None if arguments.since is None else moment(arguments.since, datetime.now())
    lines = LINES if since is None else None
    if arguments.lines is not None:
        lines = _number(arguments.lines)
    return LogQuery(lines=lines, since=since, follow=arguments.follow, json=arguments.json)


def logs(arguments: argparse.Namespace) -> int:
    """Show the log of this tidegate. Raises CliError when there is none."""
    query = read_arguments(arguments)
    places = find_places(arguments)
    running = _running(places)
    if running is None or running.watchdog.log is None:
        return _show_what_is_left(places, query)
    log = running.watchdog.log
    if log.file is not None:
        return show_file(Path(log.file), query)
    if log.journal:
        return show_journal(Scope.USER if log.user else Scope.SYSTEM, query, log.unit or NAME)
    raise CliError(_no_log_text(running.watchdog.pid, places), REFUSED)


def show_file(file: Path, query: LogQuery) -> int:
    """Print lines of a log file and of its rotated ones. Raises CliError when there is none."""
    if not any(path.exists() for path in family(file)):
        raise CliError(f"there is no log: {file} does not exist", NOT_RUNNING)
    reader = LogReader(file)
    try:
        found = (parse(line) for line in reader.read())
        _print(_last(_since(found, query.since), query.lines), query)
        if query.follow:
            _follow(reader, query)
        _print((parse(line) for line in reader.rest()), query)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise CliError(f"{error.filename or file}: {error.strerror}", REFUSED) from error
    finally:
        reader.close()
    return 0


def show_journal(scope: Scope, query: LogQuery, unit: str = NAME) -> int:
    """Print lines of a unit's journal. Raises CliError when it cannot be read or has none."""
    command = [*_journalctl(scope, unit), "-n", "all" if query.lines is None else query.lines]
    if query.since is not None:
        command.append(f"--since=@{query.since:.0f}")
    if query.follow:
        command.append("--follow")
    shown = 0
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE) as journal:  # noqa: S603
        try:
            assert journal.stdout is not None
            for entry in journal.stdout:
                _print([from_journal(entry)], query)
                shown += 1
        finally:
            journal.terminate()
    code = journal.wait()
    if query.follow:
        raise CliError(f"journalctl ended ({code}); follow again", REFUSED)
    if not shown and query.lines != 0 and query.since is None:
        raise CliError(_empty_journal_text(scope, unit), NOT_RUNNING)
    return 0


def from_journal(entry: bytes) -> Line:
    """Read a line of `journalctl -o json`. The journal keeps what is not UTF-8 as numbers."""
    fields = json.loads(entry)
    message = fields.get("MESSAGE") or ""
    text = message if isinstance(message, str) else bytes(message).decode("utf-8", "replace")
    text = printable(text.replace("\t", " ").rstrip("\n").replace("\n", " | "))
    at = datetime.fromtimestamp(int(fields["__REALTIME_TIMESTAMP"]) / 1e6).astimezone()
    time_text = at.strftime("%Y-%m-%dT%H:%M:%S%z")
    priority = str(fields.get("PRIORITY", "6"))
    level = _LEVELS[int(priority)] if priority in set("01234567") else "info"
    if ours := _OURS.fullmatch(text):
        return Line(time=time_text, level=level, process=ours[1], text=ours[2])
    who = printable(str(fields.get("SYSLOG_IDENTIFIER") or "?"))
    return Line(time=time_text, level=level, process=who, text=text)


# --- where it is ---------------------------------------------------------------------------


def _running(places: Places) -> Status | None:
    try:
        return read_status(ask(places, ControlRequest(verb="status"), STATUS_LIMIT_S))
    except CliError:
        return None  # not running, hanging, or of another version: what it wrote is still there


def _show_what_is_left(places: Places, query: LogQuery) -> int:
    """Show what the tidegate that ran here last has written: none runs that could be asked."""
    at: dict[Scope | None, float] = {}
    if written := [path.stat().st_mtime for path in family(places.log_file) if path.exists()]:
        at[None] = max(written)
    for scope in Scope if os.geteuid() == 0 else reversed(Scope):
        if last := _last_in_journal(scope):
            at[scope] = last
    if not at:
        raise CliError(
            f"there is no log: tidegate is not running, {places.log_file} does not exist, and "
            f"no journal has lines of {NAME}.service (or you may not read them)",
            NOT_RUNNING,
        )
    latest = max(at, key=lambda place: at[place])
    return show_file(places.log_file, query) if latest is None else show_journal(latest, query)


def _no_log_text(pid: int, places: Places) -> str:
    text = (
        f"tidegate (pid {pid}) keeps no log: it writes to where it was started, a terminal or "
        "whatever its standard error is. `tidegate start` keeps one, and `tidegate run "
        "--log-file FILE`"
    )
    if places.log_file.exists():
        text += f"; {places.log_file} is from an earlier time"
    return text


def _journalctl(scope: Scope, unit: str) -> list[str]:
    """Return journalctl's command for a unit. Raises CliError where there is no journalctl."""
    program = shutil.which("journalctl")
    if program is None:
        raise CliError("there is no journalctl on this computer", NOT_RUNNING)
    flag = "--unit" if scope is Scope.SYSTEM else "--user-unit"
    return [program, f"{flag}={unit}", "--output=json", "--all", "--quiet", "--no-pager"]


def _last_in_journal(scope: Scope) -> float | None:
    """Return when the journal's last line was written; None when it has none that we may see."""
    try:
        command = [*_journalctl(scope, NAME), "-n", "1"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=10)  # noqa: S603
        entry = json.loads(done.stdout)
        return int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    except (CliError, OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def _empty_journal_text(scope: Scope, unit: str) -> str:
    hint = ""
    if scope is Scope.SYSTEM and os.geteuid() != 0:
        hint = "; only root and the groups adm and systemd-journal may read the system's"
    return f"the journal has no lines of {unit}{hint}"


# --- which lines ---------------------------------------------------------------------------


def _since(lines: Iterable[Line], since: float | None) -> Iterator[Line]:
    """Skip the lines before that time. A line without a time belongs to the one before it."""
    at = float("-inf")
    for line in lines:
        at = line.at or at
        if since is None or at >= since:
            yield line


def _last(lines: Iterator[Line], number: int | None) -> Iterable[Line]:
    return lines if number is None else deque(lines, maxlen=number)


def _follow(reader: LogReader, query: LogQuery) -> None:
    """Print what comes until Ctrl-C, over rotations and restarts."""
    while True:
        _print((parse(line) for line in reader.read()), query)
        time.sleep(POLL_S)


def _print(lines: Iterable[Line], query: LogQuery) -> None:
    for line in lines:
        if query.json:
            say_json(line)
        else:
            say(line)
    if query.follow:
        sys.stdout.flush()


def _number(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise CliError(f'-n {text}: it takes a number of lines, or "all"', USAGE)
    return int(text)


def moment(text: str, now: datetime) -> float:
    """Read `30min` and `2h` ago, `06:00` today, or a date with or without a time, as Unix seconds.

    Raises CliError.
    """
    if found := re.fullmatch(r"(\d{1,9}) ?(s|m|min|h|d|w)", text):
        return now.timestamp() - int(found[1]) * _UNITS_S[found[2]]
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match text:
        case "today":
            return midnight.timestamp()
        case "yesterday":
            return (midnight - timedelta(days=1)).timestamp()
    for candidate in (text, f"{now:%Y-%m-%d}T{text}"):
        try:
            return datetime.fromisoformat(candidate).timestamp()
        except (ValueError, OverflowError):
            continue
    raise CliError(
        f"--since {text}: it takes 30min, 2h, 3d, 06:00, today, 2026-11-22 or 2026-11-22T06:00",
        USAGE,
    )
