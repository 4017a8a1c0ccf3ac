"""systemd, by its own command: the unit is written, enabled, started, watched and removed.

`systemctl start` waits for READY by itself, so it is left to run while its STATUS lines are read
beside it. Drop-ins in `tidegate.service.d` are the owner's: never written, never removed.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from tidegate.managers import files as written
from tidegate.managers.base import ManagerError, Progress, UnitState
from tidegate.managers.commands import LIMIT_S, CallError, CommandResult, call, environment, insist
from tidegate.managers.files import File, WriteError
from tidegate.managers.job import NAME, Job, Scope
from tidegate.managers.systemd import show
from tidegate.managers.systemd.unit import CREDENTIALS, service_unit, socket_unit

SERVICE = f"{NAME}.service"
SOCKET = f"{NAME}.socket"
POLL_S = 0.2
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_LINGER = Path("/var/lib/systemd/linger")
_SYSTEM_DIR = Path("/etc/systemd/system")
_SUPPLIED = {
    Scope.SYSTEM: ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system"),
    Scope.USER: ("/usr/local/lib/systemd/user", "/usr/lib/systemd/user"),
}


def is_booted() -> bool:
    """Tell whether systemd is this computer's init."""
    return _BOOTED.is_dir()


class Systemd:
    """The system's manager, or that of the user whom this process belongs to."""

    name = "systemd"

    def __init__(
        self,
        scope: Scope,
        *,
        environ: Mapping[str, str] = os.environ,
        uid: int | None = None,
        answer_s: float = LIMIT_S,
    ) -> None:
        """`answer_s` is how long systemctl is waited for each time."""
        self.scope = scope
        self._answer_s = answer_s
        self._uid = os.geteuid() if uid is None else uid
        self._env = environment(_session(environ, self._uid) if scope is Scope.USER else None)
        self._user = ["--user"] if scope is Scope.USER else []

    def __repr__(self) -> str:
        return f"<Systemd {self.scope.value}>"

    # --- what there is ----------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Return the first directory of an administrator's that the manager reads."""
        searched = self._properties("UnitPath").get("UnitPath", "").split()
        wanted = [_SYSTEM_DIR] if self.scope is Scope.SYSTEM else self._user_directories()
        return next((each for each in wanted if str(each) in searched), wanted[-1])

    def state(self) -> UnitState:
        """Return how systemd sees the service."""
        return show.state(self.show())

    def show(self) -> dict[str, str]:
        """Return the properties in force, by name (`show.PROPERTIES`). Raises ManagerError."""
        return self._properties(show.PROPERTIES, SERVICE)

    def lingers(self) -> bool:
        """Tell whether the user's services start with the computer and stay after the log-out."""
        return (_LINGER / self.user).exists()

    @property
    def user(self) -> str:
        """Return the name of the user whom this process belongs to."""
        return _user_name(self._uid)

    def last_lines(self, number: int) -> list[str]:
        """Return the journal's last lines of the latest start; none without a journal to read."""
        if not (started := self.show().get("InvocationID")):
            return []
        match = [f"_SYSTEMD_INVOCATION_ID={started}"]
        words = ["journalctl", *self._user, "--quiet", "--no-pager", "-o", "cat", "-n", str(number)]
        try:
            done = call([*words, *match], self._env)
        except CallError:
            return []
        return done.out.splitlines() if done.code == 0 else []

    def words(self, verb: str) -> str:
        """Write a command of systemctl as people type it."""
        sudo = ["sudo"] if self.scope is Scope.SYSTEM and self._uid != 0 else []
        return " ".join([*sudo, "systemctl", *self._user, verb, NAME])

    def key_advice(self, variable: str, upstream: str) -> str | None:
        """Say where a key goes: the environment of a service is not the one of this terminal."""
        shown = self.show()
        if f"{variable}=" in shown.get("Environment", "") or shown.get("EnvironmentFiles"):
            return None
        if self.scope is Scope.SYSTEM:
            return (
                f"write the key into {CREDENTIALS}/{upstream} (0600, root's) and "
                f'`api_key_file = "{upstream}"` into the config; or `{self.words("edit")}`: '
                "[Service] and EnvironmentFile= with a 0600 file that sets it"
            )
        return (
            "write the key into a 0600 file and name that in the config with `api_key_file`; or "
            f"`{self.words('edit')}`: [Service] and EnvironmentFile= with a 0600 file that sets it"
        )

    # --- the files --------------------------------------------------------------------------

    def supplied(self, job: Job) -> Path | None:
        """Return a package's unit that starts the very same command; None without one."""
        ours = _exec_start(service_unit(job, self._version()))
        for folder in _SUPPLIED[self.scope]:
            path = Path(folder, SERVICE)
            try:
                theirs = _exec_start(path.read_text(errors="replace"))
            except OSError:
                continue
            if theirs == ours and not (self.directory / SERVICE).exists():
                return path
        return None

    def files(self, job: Job, sockets: Sequence[str]) -> list[File]:
        """Make the service unit, and the socket unit when there are addresses for it."""
        version, directory = self._version(), self.directory
        texts = {SERVICE: service_unit(job, version)}
        if sockets:
            texts[SOCKET] = socket_unit(job, sockets, version)
        for name in texts:
            path = directory / name
            if path.is_symlink() and path.resolve() == Path(os.devnull):
                raise ManagerError(f"{name} is masked; run: {self.words('unmask')}")
        return [
            File(directory / name, written.marked(text, lambda mark: f"# {mark}"))
            for name, text in texts.items()
        ]

    def opens_sockets(self) -> bool:
        """Tell whether there is a socket unit beside the service."""
        return os.path.lexists(self.directory / SOCKET)

    def enable(self, files: Sequence[File]) -> list[str]:
        """Reload, enable, and check that the unit in force is the one that was written."""
        names = [file.path.name for file in files] or [SERVICE]
        self._insist("daemon-reload")
        self._insist("enable", *names)
        found = self.state().file
        wrote = next((file.path for file in files if file.path.name == SERVICE), None)
        if wrote is not None and found is not None and found.resolve() != wrote.resolve():
            raise ManagerError(
                f"{wrote} is written, but systemd reads {found} instead; remove that"
            )
        return self._linger() if self.scope is Scope.USER else []

    def remove(self) -> list[str]:
        """Disable the units, remove their files and reload; nothing is stopped."""
        directory = self.directory
        ours = [name for name in (SOCKET, SERVICE) if os.path.lexists(directory / name)]
        notes = []
        self._call("disable", *(ours or [SERVICE]))
        for name in ours:
            try:
                kept = written.remove(directory / name)
            except WriteError as error:
                raise ManagerError(str(error)) from error
            notes.append(
                f"{directory / name} was changed by hand: kept as {kept}"
                if kept
                else f"Removed {directory / name}."
            )
        self._insist("daemon-reload")
        self._call("reset-failed", *(ours or [SERVICE]))
        if (brought := self.state().file) and SERVICE not in ours:
            notes.append(f"{brought} came with a package and goes with it; it is disabled.")
        drop_ins = directory / f"{SERVICE}.d"
        if drop_ins.is_dir():
            notes.append(f"{drop_ins} holds changes of yours and stays.")
        return notes

    # --- start and stop ---------------------------------------------------------------------

    def start(self, limit_s: float, progress: Progress) -> None:
        """Start the service, its sockets first where it has any."""
        self._open_sockets()
        self._run("start", limit_s, progress)

    def stop(self, limit_s: float, progress: Progress) -> None:
        """Stop the service and its sockets: the next connection would start it again."""
        if self.opens_sockets():
            self._call("stop", SOCKET)
        self._run("stop", limit_s, progress)

    def restart(self, limit_s: float, progress: Progress) -> None:
        """Restart the service; sockets that systemd opened stay open meanwhile."""
        if self.opens_sockets() and not self._is_listening():
            self._run("stop", limit_s, progress)  # beside a running service they are not opened
        self._open_sockets()
        self._run("restart", limit_s, progress)

    def _is_listening(self) -> bool:
        return self._properties("ActiveState", SOCKET).get("ActiveState") == "active"

    def _open_sockets(self) -> None:
        if not self.opens_sockets():
            return
        self._call("reset-failed", SOCKET)
        done = self._call("start", SOCKET)
        if done.code != 0 and not self._is_listening():
            shown = self._properties("LoadState,Result", SOCKET)
            why = ", ".join(word for word in shown.values() if word not in {"loaded", "success"})
            raise ManagerError(
                f"systemd could not open the addresses of {SOCKET} ({why or done.complaint}): each "
                "has to be a number and a port that no other program listens on"
            )

    def _run(self, verb: str, limit_s: float, progress: Progress) -> None:
        """Have systemctl do it, and pass on the status lines of the service meanwhile."""
        self._call("reset-failed", SERVICE)  # being asked again means to try again
        latest = self.show().get("StatusText", "")  # of before; it is not told again
        deadline_s = time.monotonic() + limit_s
        with self._begun(verb) as (process, output):
            while process.poll() is None:
                if time.monotonic() >= deadline_s:
                    raise ManagerError(
                        f"systemd has not finished within {limit_s:g} s and goes on; see: "
                        f"{self.words('status')}"
                    )
                said = self.show().get("StatusText", "")
                if said and said != latest:
                    progress(said)
                latest = said
                time.sleep(POLL_S)
            if process.returncode != 0:
                output.seek(0)
                raise ManagerError(self._complaint(verb, output.read().decode("utf-8", "replace")))

    @contextmanager
    def _begun(self, verb: str) -> Iterator[tuple[subprocess.Popen[bytes], BinaryIO]]:
        """Run systemctl, with a file of what it says. Leaving ends systemctl, not its job."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(  # noqa: S603
                [_program("systemctl"), *self._user, "--no-ask-password", verb, SERVICE],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
            )
            try:
                yield process, cast(BinaryIO, output)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait()

    def _complaint(self, verb: str, said: str) -> str:
        """Say why it did not start, which systemctl itself never tells."""
        state = self.state()
        if state.result is None:
            return self._plain(said) or f"systemctl {verb} failed"
        again = "; systemd tries again" if state.active else ""
        said = f": {state.said}" if state.said.startswith("failed") else ""
        return f"it did not start, {state.result}{said}{again}"

    # --- asking systemctl -------------------------------------------------------------------

    def _properties(self, names: str, *unit: str) -> dict[str, str]:
        return show.parse(self._insist("show", "-p", names, *unit))

    def _version(self) -> int:
        said = self._insist("--version")
        if found := re.match(r"systemd (\d+)", said):
            return int(found[1])
        raise ManagerError(f"this is not a version of systemd: {said.splitlines()[:1]}")

    def _insist(self, *words: str) -> str:
        done = self._call(*words)
        if done.code != 0:
            raise ManagerError(self._plain(f"systemctl {' '.join(words[:2])}: {done.complaint}"))
        return done.out

    def _call(self, *words: str) -> CommandResult:
        try:
            command = [_program("systemctl"), *self._user, "--no-ask-password", *words]
            return call(command, self._env, self._answer_s)
        except CallError as error:
            raise ManagerError(str(error)) from error

    def _plain(self, said: str) -> str:
        """Say in plain words what systemctl complains of, and what to do."""
        if "Failed to connect to bus" in said:
            return self._unreachable()
        if "interactive authentication" in said.lower() or "Access denied" in said:
            return "systemd lets only root do that: run it with sudo"
        return said

    def _unreachable(self) -> str:
        if self.scope is Scope.SYSTEM:
            return "systemd does not answer: is it this computer's init, and not only installed?"
        name = self.user
        return (
            f"there is no systemd for the user {name} here. `su` and `sudo` start none: log in as "
            f"{name}, or run: sudo loginctl enable-linger {name}"
        )

    # --- particulars of users -----------------------------------------------------------------

    def _user_directories(self) -> list[Path]:
        home = Path(self._env.get("HOME") or pwd.getpwuid(self._uid).pw_dir)
        named = self._env.get("XDG_CONFIG_HOME", "")
        roots = [Path(named)] if named.startswith("/") else []
        return [root / "systemd" / "user" for root in [*roots, home / ".config"]]

    def _linger(self) -> list[str]:
        """Turn lingering on: else the service ends with the log-out, and no boot starts it."""
        name = self.user
        if self.lingers():
            return []
        try:
            insist(["loginctl", "--no-ask-password", "enable-linger", name], self._env)
        except CallError as error:
            return [
                f"It will end when {name} logs out and not start with the computer "
                f"({error}); run: sudo loginctl enable-linger {name}"
            ]
        return [f"It starts with the computer, and stays when {name} logs out (linger is on)."]


def _exec_start(unit: str) -> str | None:
    return next((line for line in unit.splitlines() if line.startswith("ExecStart=")), None)


def _session(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """Return the variable that leads to the user's manager, which cron for example lacks."""
    if environ.get("XDG_RUNTIME_DIR"):
        return {}
    usual = Path(f"/run/user/{uid}")
    return {"XDG_RUNTIME_DIR": str(usual)} if usual.is_dir() else {}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _program(name: str) -> str:
    """Return a program's path: what is found must not depend on this terminal's."""
    return shutil.which(name) or name
