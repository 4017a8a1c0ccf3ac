"""An upgrade: the watchdog becomes the program that lies on the disk now, and no client is cut off.

    asked for -> a preflight: the very command that would be executed reads what it would inherit
    -> execve: the process keeps its id, its children and these descriptors
    -> the new watchdog takes up what the former one left, and recycles: a new worker follows

What fails in the preflight (a broken installation, a config that the new version refuses, a
worker's protocol that it does not speak) changes nothing. What is handed on lies in memory, for
the config that is in force has keys in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tidegate.core import decoding
from tidegate.logs import handler
from tidegate.machine.nameless_file import nameless_file
from tidegate.machine.signals import block_early
from tidegate.watchdog.upgrade.state import (
    MOST_FD,
    UpgradeError,
    UpgradeState,
    read,
    write,
)
from tidegate.watchdog.workers.process import worker_environment

STATE_VARIABLE = "TIDEGATE_ESTATE_FD"
PREFLIGHT_VARIABLE = "TIDEGATE_REHEARSAL"
PREFLIGHT_LIMIT_S = 60.0  # imports from a Raspberry Pi's cold SD card take ten
QUIET_LIMIT_S = 10.0  # for commands and a reload under way to come to their end
_OUTPUT_BYTES = 2000


# --- the new program's side ------------------------------------------------------------------


def inherited(environ: MutableMapping[str, str]) -> UpgradeState | None:
    """Take up what the former watchdog left to this process; the variable is used up.

    Raises UpgradeError.
    """
    fd = decoding.count(environ.pop(STATE_VARIABLE, ""), MOST_FD)
    if fd is None:
        return None
    try:
        state = read(fd)
    finally:
        with suppress(OSError):  # it was no descriptor at all
            os.close(fd)
    for each in state.descriptors:
        os.set_inheritable(each, False)
    return state


def is_preflight(environ: Mapping[str, str]) -> bool:
    """Tell whether this process is only to say if it could take over."""
    return PREFLIGHT_VARIABLE in environ


def preflight(environ: Mapping[str, str]) -> UpgradeState:
    """Read what would be inherited. Raises UpgradeError."""
    fd = decoding.count(environ.get(STATE_VARIABLE, ""), MOST_FD)
    if fd is None:
        raise UpgradeError("nothing was handed on")
    return read(fd)


# --- the former program's side ------------------------------------------------------------------


def command() -> list[str]:
    """Find anew what was started: it is what to execute.

    A script is started as such, so that the interpreter it names today is the one that runs it.
    """
    script = Path(sys.argv[0]).absolute()
    if script.suffix != ".py" and script.is_file() and os.access(script, os.X_OK):
        return [str(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


class Preflight:
    """Run the command to see whether it could take over. Never waits."""

    def __init__(self, argv: Sequence[str], state: UpgradeState, now_s: float) -> None:
        """Start it. Raises UpgradeError."""
        self._deadline_s = now_s + PREFLIGHT_LIMIT_S
        try:
            with ExitStack() as unless_started:
                self._output = unless_started.enter_context(nameless_file())
                with write(state) as file:
                    self._process = self._start(argv, file.fileno())
                unless_started.pop_all()
        except OSError as error:
            raise UpgradeError(f"{argv[0]} cannot be started: {error}") from error

    def _start(self, argv: Sequence[str], state: int) -> subprocess.Popen[bytes]:
        environ = worker_environment(os.environ) | {
            STATE_VARIABLE: str(state),
            PREFLIGHT_VARIABLE: "1",
        }
        environ.pop(handler.FILE_VARIABLE, None)  # what it prints is for us
        return subprocess.Popen(  # noqa: S603  (our own command)
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environ,
            pass_fds=[state],
        )

    def is_over(self, now_s: float) -> bool:
        """Tell whether it has come to its end, by itself or at its limit."""
        if self._process.poll() is None and now_s > self._deadline_s:
            self._process.kill()
            self._process.wait()
        return self._process.poll() is not None

    def judge(self) -> None:
        """Raise UpgradeError when it did not end well, with what it printed."""
        code = self._process.returncode
        with self._output as output:
            output.seek(0)
            text = output.read(_OUTPUT_BYTES).decode("utf-8", "replace").strip()
        if code:
            raise UpgradeError(text or f"it ended with exit code {code} and printed nothing")

    def cancel(self) -> None:
        """End it: its result is not wanted any more."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def become(argv: Sequence[str], state: UpgradeState, notify: Mapping[str, str]) -> None:
    """Execute `argv` in this process. Returns only by UpgradeError; then all is as before.

    Signals wait meanwhile: until the new program handles them, their default would end it.
    """
    try:
        with write(state) as file:
            _execute(argv, [file.fileno(), *state.descriptors], file.fileno(), notify)
    except OSError as error:
        raise UpgradeError(f"{argv[0]} cannot be executed: {error}") from error


def _execute(
    argv: Sequence[str], kept: Sequence[int], state: int, notify: Mapping[str, str]
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    block_early()
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        environ = {**os.environ, **notify, STATE_VARIABLE: str(state)}
        os.execve(argv[0], list(argv), environ)  # noqa: S606  (our own command)
    finally:
        for fd in kept:
            with suppress(OSError):
                os.set_inheritable(fd, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Upgrade:
    """One upgrade that was asked for, from its preflight to the moment before execve."""

    def __init__(self, state: UpgradeState) -> None:
        """Begin. Raises UpgradeError."""
        self.argv = command()
        self._preflight: Preflight | None = Preflight(self.argv, state, time.monotonic())
        self._quiet_until_s = 0.0

    def is_due(self, now_s: float, *, is_quiet: bool) -> bool:
        """Tell whether it is time for `become`. Raises UpgradeError when the preflight failed.

        It waits a little for clients that are being answered just now.
        """
        if self._preflight is not None:
            if not self._preflight.is_over(now_s):
                return False
            preflight, self._preflight = self._preflight, None
            preflight.judge()
            self._quiet_until_s = now_s + QUIET_LIMIT_S
        return is_quiet or now_s > self._quiet_until_s

    def cancel(self) -> None:
        """End the preflight, if it still runs: the upgrade is not wanted any more."""
        if self._preflight is not None:
            self._preflight.cancel()
