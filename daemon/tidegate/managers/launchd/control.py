"""launchd, by its own command: the property list is written, bootstrapped, watched and removed.

launchctl answers before the work is done, so nothing is believed before `print` shows it: a job
that was booted out may be there for a while yet, and a bootstrap meanwhile fails with EIO (5) or
"already in progress" (37). Both are tried again until the time is over. `stop` boots the job out,
for only then does launchd wait as long as ExitTimeOut says; the file stays, and brings the job
back with the next start of the computer.
"""

from __future__ import annotations

import os
import plistlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from tidegate.managers import files as written
from tidegate.managers.base import ManagerError, Progress, UnitState
from tidegate.managers.commands import CallError, CommandResult, call, environment
from tidegate.managers.files import File, WriteError
from tidegate.managers.job import LABEL, Job, Scope
from tidegate.managers.launchd import printed
from tidegate.managers.launchd.plist import plist

FILE_NAME = f"{LABEL}.plist"
POLL_S = 0.2
RETRY_S = 0.5
PRINT_LIMIT_S = 20.0
RACE_LIMIT_S = 15.0  # what does not pass within this time is no race
_NOT_LOADED = {3, 113}  # ESRCH; "Could not find service" of newer versions
_FOR_A_MOMENT = {5, 36, 37}  # EIO; EINPROGRESS and EALREADY, as macOS numbers them
_NO_DOMAIN = {112, 125}  # no user is logged in at the screen
_MARK_LINE = 2  # in a plist: behind the declaration and the document type
_LOG_TAIL_BYTES = 64 * 1024


class Launchd:
    """The system's launchd, or the part of it that serves one user."""

    name = "launchd"

    def __init__(
        self,
        scope: Scope,
        *,
        environ: Mapping[str, str] = os.environ,
        uid: int | None = None,
        answer_s: float = PRINT_LIMIT_S,
    ) -> None:
        """`answer_s` is how long launchctl is waited for each time; a `bootout` may take longer."""
        self.scope = scope
        self._answer_s = answer_s
        self._uid = os.geteuid() if uid is None else uid
        self._env = environment()
        self._home = Path(environ.get("HOME") or Path.home())

    def __repr__(self) -> str:
        return f"<Launchd {self.scope.value}>"

    # --- what there is ----------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Return where launchd looks when the computer starts, or when its user logs in."""
        if self.scope is Scope.SYSTEM:
            return Path("/Library/LaunchDaemons")
        return self._home / "Library" / "LaunchAgents"

    def state(self) -> UnitState:
        """Return how launchd sees the job; the file alone is installed, but not active."""
        path = self.directory / FILE_NAME
        text = self.show()
        if text is None:
            there = path.exists()
            return UnitState(
                installed=there,
                enabled=there,
                word="not loaded" if there else "not installed",
                file=path if there else None,
                command=" ".join(self._arguments()),
            )
        return printed.state(text, path)

    def show(self) -> str | None:
        """Print what launchd has loaded; None when it has not. Raises ManagerError."""
        for domain in self._domains():
            done = self._call("print", f"{domain}/{LABEL}")
            if done.code == 0:
                return done.out
            if done.code not in _NOT_LOADED | _NO_DOMAIN | _FOR_A_MOMENT:
                raise ManagerError(self._plain("print", done))
        return None

    def last_lines(self, number: int) -> list[str]:
        """Return the last lines of the files that the job logs to."""
        lines: list[str] = []
        for path in self._logs():
            try:
                with path.open("rb") as log:
                    log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
                    lines += log.read().decode("utf-8", "replace").splitlines()[-number:]
            except OSError:
                continue
        return lines[-number:]

    def words(self, verb: str) -> str:
        """Write a command of launchctl as people type it."""
        sudo = "sudo " if self.scope is Scope.SYSTEM and self._uid != 0 else ""
        return f"{sudo}launchctl {verb} {self._domains()[0]}/{LABEL}"

    def key_advice(self, variable: str, upstream: str) -> str | None:
        """Say where a key goes: never into the plist, which every user can read."""
        del variable
        return (
            f'write the key of "{upstream}" into a 0600 file that belongs to the service\'s user, '
            "and name that in the config with `api_key_file`"
        )

    # --- the file ---------------------------------------------------------------------------

    def supplied(self, job: Job) -> Path | None:
        """Return None: no package brings a property list."""
        del job
        return None

    def files(self, job: Job, sockets: Sequence[str]) -> list[File]:
        """Make the property list; its mark is a comment of XML."""
        text = plist(job, sockets).decode()
        marked = written.marked(text, lambda mark: f"<!-- {mark} -->", _MARK_LINE)
        return [File(self.directory / FILE_NAME, marked)]

    def opens_sockets(self) -> bool:
        """Tell whether the property list has sockets."""
        return "Sockets" in self._keys()

    def enable(self, files: Sequence[File]) -> list[str]:
        """Take back a `launchctl disable`. What is loaded from an older file goes at the start."""
        del files
        self._call("enable", f"{self._domains()[0]}/{LABEL}")
        if self.scope is Scope.SYSTEM:
            return ["It starts with the computer."]
        return [
            "It starts when you log in. Since macOS 15 an agent may not reach other computers on "
            "the network before you allow it; as a system service (sudo … --system) it may."
        ]

    def remove(self) -> list[str]:
        """Boot it out if it is loaded, and remove the file."""
        path = self.directory / FILE_NAME
        if self.show() is not None:
            self._bootout(PRINT_LIMIT_S)
        if not os.path.lexists(path):
            return []
        try:
            kept = written.remove(path)
        except WriteError as error:
            raise ManagerError(str(error)) from error
        return [f"{path} was changed by hand: kept as {kept}" if kept else f"Removed {path}."]

    # --- start and stop ---------------------------------------------------------------------

    def start(self, limit_s: float, progress: Progress) -> None:
        """Load the file's job, unless that is loaded; then see that there is a process."""
        deadline_s = time.monotonic() + limit_s
        if self.show() is not None and self._differs():
            progress("launchd has an older version loaded; it is replaced")
            self._bootout(limit_s)
        if self.show() is None:
            self._bootstrap()
        if not self.state().running:
            self._call("kickstart", self._target())
        if not _wait(lambda: self.state().running, deadline_s):
            state = self.state()
            raise ManagerError(f"launchd has not started it: {state.result or state.word}")
        if differs := self._differs():
            raise ManagerError(f"launchd has loaded something else than the file says: {differs}")

    def stop(self, limit_s: float, progress: Progress) -> None:
        """Boot it out, and wait until it is gone."""
        del progress  # launchd hears nothing of how far it is
        if self.show() is not None:
            self._bootout(limit_s)

    def restart(self, limit_s: float, progress: Progress) -> None:
        """Boot it out and in again: a `kickstart -k` would not wait for the streams."""
        self.stop(limit_s, progress)
        self.start(limit_s, progress)

    def _bootstrap(self) -> None:
        """Load it into the first domain that takes it. What passes in a moment is tried again."""
        deadline_s = time.monotonic() + RACE_LIMIT_S
        path = self.directory / FILE_NAME
        if not path.exists():
            raise ManagerError(f"{path} is not there; run: tidegate service install")
        domains = self._domains()
        while True:
            done = self._call("bootstrap", domains[0], str(path))
            if done.code == 0 or self.show() is not None:
                return
            if done.code in _NO_DOMAIN and len(domains) > 1:
                domains = domains[1:]
            elif done.code not in _FOR_A_MOMENT or time.monotonic() >= deadline_s:
                raise ManagerError(self._plain("bootstrap", done))
            else:
                time.sleep(RETRY_S)

    def _bootout(self, limit_s: float) -> None:
        """Boot it out and wait: launchd kills after ExitTimeOut, and shows it a moment longer."""
        deadline_s = time.monotonic() + limit_s
        while self.show() is not None:
            done = self._call("bootout", self._target(), limit_s=max(limit_s, PRINT_LIMIT_S))
            if done.code not in {0} | _NOT_LOADED | _FOR_A_MOMENT:
                raise ManagerError(self._plain("bootout", done))
            if _wait(lambda: self.show() is None, min(deadline_s, time.monotonic() + RETRY_S)):
                return
            if time.monotonic() >= deadline_s:
                raise ManagerError(
                    f"it is still there after {limit_s:g} s, see: {self.words('print')}"
                )

    def _differs(self) -> str | None:
        """Say where the loaded job differs from the file, which it does not follow by itself."""
        text, wanted = self.show(), self._keys()
        if text is None or not wanted:
            return None
        arguments = printed.block(text, "arguments")
        if arguments and arguments != self._arguments():
            return "other arguments"
        timeout_s = printed.number(text, "exit timeout")
        if timeout_s is not None and timeout_s != wanted.get("ExitTimeOut"):
            return f"an exit timeout of {timeout_s} s"
        return None

    # --- asking launchctl -------------------------------------------------------------------

    def _domains(self) -> list[str]:
        """Return the domains to try: an agent's is the login at the screen, else the user's."""
        if self.scope is Scope.SYSTEM:
            return ["system"]
        return [f"gui/{self._uid}", f"user/{self._uid}"]

    def _target(self) -> str:
        """Return the job's name in the domain where it is loaded, or would be."""
        for domain in self._domains():
            if self._call("print", f"{domain}/{LABEL}").code == 0:
                return f"{domain}/{LABEL}"
        return f"{self._domains()[0]}/{LABEL}"

    def _call(self, *words: str, limit_s: float | None = None) -> CommandResult:
        try:
            return call(["launchctl", *words], self._env, limit_s or self._answer_s)
        except CallError as error:
            raise ManagerError(str(error)) from error

    def _plain(self, verb: str, done: CommandResult) -> str:
        why = {
            1: "launchd lets only root do that: run it with sudo",
            119: f"it is disabled; run: {self.words('enable')}",
            5: (
                "launchd refused it, and says why only in its log: log show --last 5m --predicate "
                "'process == \"launchd\"'"
            ),
            **dict.fromkeys(_NO_DOMAIN, "no user is logged in at the screen of this Mac"),
        }.get(done.code)
        return f"launchctl {verb}: {why or done.complaint}"

    def _logs(self) -> list[Path]:
        """Return the files that the job logs to: launchd's first, then ours, which matters most."""
        words = self._arguments()
        ours = words[words.index("--log-file") + 1 :][:1] if "--log-file" in words else []
        return [Path(each) for each in [self._keys().get("StandardErrorPath"), *ours] if each]

    def _arguments(self) -> list[str]:
        return [str(word) for word in self._keys().get("ProgramArguments", [])]

    def _keys(self) -> dict[str, Any]:
        """Read the property list; empty when there is none that can be read."""
        try:
            keys = plistlib.loads((self.directory / FILE_NAME).read_bytes())
        except (OSError, plistlib.InvalidFileException, ValueError, ExpatError):
            return {}
        return keys if isinstance(keys, dict) else {}


def _wait(condition: Callable[[], bool], deadline_s: float) -> bool:
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True
