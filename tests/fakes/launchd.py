"""A stand-in for launchd, on Linux: it runs a property list and really supervises the job.

`launchd(folder)` starts it; `fakes.launchctl` is its command line, and `environ` puts that on a
PATH. A job of the stand-in is a child of it, gets launchd's poor environment, and finds
`launch_activate_socket` in its own process (`launch_activate_socket.c`, preloaded).

Where launchd leaves a choice, the stand-in takes the one that is harder for a job:

- no HOME for a job of the system, `/` as the directory, nothing on standard input;
- a kill of what is left of the job's process group once its first process is gone;
- SIGKILL for `kickstart -k`, without a word before;
- ExitTimeOut capped at 60 s, and bootstrap fails with EIO for a moment after a bootout.

Not played: UserName and GroupName (the job runs as the user that tests), ProcessType, sessions.
Only ThrottleInterval is scaled, by `throttle_scale`, and `print` tells the unscaled one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import plistlib
import resource
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.launchd_keys import complaints

HERE = Path(__file__).resolve().parent
TURN_S = 0.02
DEFAULT_THROTTLE_S = 10
DEFAULT_EXIT_S = 20  # launchd.plist(5)
MOST_EXIT_S = 60
AFTERMATH_S = 0.5  # after a bootout a bootstrap fails for so long
BOOTOUT_S = 2.0  # launchctl waits so long for a job to be gone
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
# What a crash is to KeepAlive's Crashed.
CRASHES = {signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS,
           signal.SIGSEGV, signal.SIGSYS}  # fmt: skip
LIMITS = {
    "Core": resource.RLIMIT_CORE,
    "CPU": resource.RLIMIT_CPU,
    "Data": resource.RLIMIT_DATA,
    "FileSize": resource.RLIMIT_FSIZE,
    "MemoryLock": resource.RLIMIT_MEMLOCK,
    "NumberOfFiles": resource.RLIMIT_NOFILE,
    "NumberOfProcesses": resource.RLIMIT_NPROC,
    "ResidentSetSize": resource.RLIMIT_RSS,
    "Stack": resource.RLIMIT_STACK,
}

# What `launchctl error` calls them.
EIO, IN_PROGRESS, NO_SERVICE, NO_DOMAIN, DISABLED, BAD_MODE, BAD_PLIST = (
    5,
    36,
    113,
    125,
    119,
    122,
    109,
)
WORDS = {
    EIO: "Input/output error",
    IN_PROGRESS: "Operation now in progress",
    NO_SERVICE: "Could not find specified service",
    NO_DOMAIN: "Domain does not support specified action",
    DISABLED: "Service is disabled",
    BAD_MODE: "Path had bad ownership/permissions",
    BAD_PLIST: "Invalid property list",
}


class Refused(Exception):
    """launchctl ends with this code."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what} failed: {code}: {WORDS[code]}")
        self.code = code


@dataclass(eq=False)
class Job:
    """One loaded property list and the process it has now."""

    path: Path
    domain: str
    keys: dict[str, Any]
    sockets: dict[str, list[socket.socket]]
    process: subprocess.Popen[bytes] | None = None
    due_s: float | None = None  # when to start it
    started_s: float = float("-inf")
    runs: int = 0
    ended: int | None = None  # how the last process did, as Popen says it
    leaving: bool = False
    told: signal.Signals | None = None  # the last signal on the way out
    kill_s: float | None = None
    activated: set[str] = field(default_factory=set)  # by the process of now

    @property
    def label(self) -> str:
        return str(self.keys["Label"])

    @property
    def exit_s(self) -> int:
        """0 is for ever; whatever is asked for, 60 s is the most."""
        return min(self.keys.get("ExitTimeOut", DEFAULT_EXIT_S) or MOST_EXIT_S, MOST_EXIT_S)

    @property
    def throttle_s(self) -> int:
        return int(self.keys.get("ThrottleInterval", DEFAULT_THROTTLE_S))

    def wants_again(self, code: int) -> bool:
        """What KeepAlive says of this exit; its conditions are alternatives."""
        keep: bool | dict[str, Any] = self.keys.get("KeepAlive", False)
        if isinstance(keep, bool):
            return keep
        unknown = keep.keys() - {"SuccessfulExit", "Crashed"}
        assert not unknown, f"the stand-in cannot play KeepAlive {unknown}"
        facts = {"SuccessfulExit": code == 0, "Crashed": -code in CRASHES}
        return any(facts[condition] == wanted for condition, wanted in keep.items())

    def is_alive(self) -> bool:
        return self.process is not None


class Launchd:
    """The loop of the stand-in: its jobs, and those who ask."""

    def __init__(self, listener: socket.socket, shim: str, throttle_scale: float, gui: bool):
        self._listener = listener
        self._shim = shim
        self._scale = throttle_scale
        self._gui = gui
        self._jobs: dict[str, Job] = {}
        self._disabled: set[str] = set()
        self._aftermath_s: dict[str, float] = {}  # until when a bootstrap fails
        self._waiting: list[tuple[socket.socket, Job, float]] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._over = False

    def serve(self, lifeline: int) -> None:
        """Run until the process that started it has gone, then end every job."""
        self._selector.register(lifeline, selectors.EVENT_READ, self._bereaved)
        while not self._over:
            self._turn()
        for job in self._jobs.values():
            self._stop(job)
        while any(job.is_alive() for job in self._jobs.values()):
            self._turn()
        for job in list(self._jobs.values()):
            self._forget(job)

    def _turn(self) -> None:
        for key, _ in self._selector.select(TURN_S):
            key.data()
        now_s = time.monotonic()
        for job in list(self._jobs.values()):
            self._look_after(job, now_s)
        for each in list(self._waiting):
            conn, job, until_s = each
            if job not in self._jobs.values() or now_s >= until_s:
                self._waiting.remove(each)
                gone = job not in self._jobs.values()
                error = "" if gone else str(Refused(IN_PROGRESS, "Boot-out"))
                _reply(conn, 0 if gone else IN_PROGRESS, error=error)

    def _bereaved(self) -> None:
        self._over = True

    # --- jobs -------------------------------------------------------------------------------

    def _look_after(self, job: Job, now_s: float) -> None:
        if job.process is not None:
            self._reap(job, now_s)
        if job.kill_s is not None and now_s >= job.kill_s:
            job.kill_s, job.told = None, signal.SIGKILL
            self._signal(job, signal.SIGKILL)
        if job.process is None and job.leaving:
            self._forget(job)
        elif job.process is None and job.due_s is not None and now_s >= job.due_s:
            self._spawn(job, now_s)
        elif job.process is None and job.due_s is None:
            self._wake_for_clients(job)

    def _wake_for_clients(self, job: Job) -> None:
        """Start a job with sockets when a client connects."""
        socks = [sock for group in job.sockets.values() for sock in group]
        with selectors.DefaultSelector() as waiting:
            for sock in socks:
                waiting.register(sock, selectors.EVENT_READ)
            if socks and waiting.select(0):
                self._schedule(job)

    def _schedule(self, job: Job) -> None:
        """Now, but not sooner than ThrottleInterval after the last start."""
        job.due_s = max(time.monotonic(), job.started_s + job.throttle_s * self._scale)

    def _reap(self, job: Job, now_s: float) -> None:
        assert job.process is not None
        pid = job.process.pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        if not job.keys.get("AbandonProcessGroup"):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
        job.ended = job.process.wait()
        job.process = job.kill_s = None
        _say(f"{job.label} ended with {job.ended} after {now_s - job.started_s:.1f} s")
        if not job.leaving and job.due_s is None and job.wants_again(job.ended):
            self._schedule(job)

    def _spawn(self, job: Job, now_s: float) -> None:
        keys = job.keys
        job.due_s, job.started_s, job.told = None, now_s, None
        job.runs += 1
        job.activated.clear()
        with contextlib.ExitStack() as files:
            out = files.enter_context(_opened(keys.get("StandardOutPath")))
            err = files.enter_context(_opened(keys.get("StandardErrorPath")))
            try:
                job.process = subprocess.Popen(
                    keys.get("ProgramArguments") or [keys["Program"]],
                    executable=keys.get("Program"),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=keys.get("WorkingDirectory", "/"),
                    env=self._environment(job),
                    umask=_umask(keys),
                    start_new_session=True,
                    preexec_fn=lambda: _limit(keys),  # noqa: PLW1509  (there are no threads)
                )
            except (OSError, subprocess.SubprocessError) as error:
                _say(f"{job.label} cannot be executed: {error}")
                job.ended = 78  # EX_CONFIG, as launchd has it
                if job.wants_again(job.ended):
                    self._schedule(job)
                return
        _say(f"{job.label} runs as {job.process.pid}")

    def _environment(self, job: Job) -> dict[str, str]:
        env = {"PATH": PATH, "XPC_FLAGS": "0x0", "XPC_SERVICE_NAME": job.label}
        if job.domain != "system":
            whose = ("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR")
            env |= {name: os.environ[name] for name in whose if name in os.environ}
        env |= job.keys.get("EnvironmentVariables", {})
        if self._shim:
            env |= {
                "LD_PRELOAD": self._shim,
                "LAUNCHD_STANDIN": str(self._listener.getsockname()),
                "LAUNCHD_STANDIN_PID": str(os.getpid()),
            }
        return env

    def _stop(self, job: Job) -> None:
        job.leaving, job.due_s = True, None
        if job.process is not None and job.told is None:
            job.told, job.kill_s = signal.SIGTERM, time.monotonic() + job.exit_s
            self._signal(job, signal.SIGTERM)

    def _signal(self, job: Job, number: signal.Signals) -> None:
        if job.process is not None:
            _say(f"{job.label} is sent {number.name}")
            job.process.send_signal(number)

    def _forget(self, job: Job) -> None:
        for sock in (sock for group in job.sockets.values() for sock in group):
            if sock.family == socket.AF_UNIX:
                Path(sock.getsockname()).unlink(missing_ok=True)
            sock.close()
        self._jobs.pop(f"{job.domain}/{job.label}", None)
        self._aftermath_s[job.label] = time.monotonic() + AFTERMATH_S

    # --- those who ask ----------------------------------------------------------------------

    def _accept(self) -> None:
        conn, _ = self._listener.accept()
        conn.settimeout(5)
        try:
            line = conn.makefile("rb").readline().decode()
            if line.startswith("activate "):
                self._activate(conn, line.split()[1])
                return
            words = json.loads(line)
            if (out := self._asked(conn, words[0], words[1:])) is not None:
                _reply(conn, 0, out)
        except Refused as error:
            _reply(conn, error.code, error=str(error))
        except (OSError, ValueError, IndexError) as error:
            _reply(conn, 64, error=f"{error}")

    def _asked(self, conn: socket.socket, verb: str, words: list[str]) -> str | None:
        """What to print; None when the answer comes later."""
        if verb == "bootstrap":
            domain, *paths = words
            for path in paths:
                self._bootstrap(domain, Path(path))
            return ""
        if verb in {"enable", "disable"}:
            (self._disabled.discard if verb == "enable" else self._disabled.add)(words[0])
            return ""
        if verb == "kickstart":
            self._kickstart(self._job(words[-1], "Kickstart"), kill="-k" in words)
            return ""
        if verb == "bootout":
            job = self._job(words[0], "Boot-out")
            self._stop(job)
            self._waiting.append((conn, job, time.monotonic() + BOOTOUT_S))
            return None
        if verb == "print":
            return described(self._job(words[0], "Print"))
        raise ValueError(f"Unrecognized subcommand: {verb}")

    def _job(self, target: str, what: str) -> Job:
        domain = target.rpartition("/")[0]
        self._support(domain, what)
        if target not in self._jobs:
            raise Refused(NO_SERVICE, what)
        return self._jobs[target]

    def _support(self, domain: str, what: str) -> None:
        mine = {"system", f"user/{os.getuid()}"} | ({f"gui/{os.getuid()}"} if self._gui else set())
        if domain not in mine:
            raise Refused(NO_DOMAIN, what)

    def _bootstrap(self, domain: str, path: Path) -> None:
        what = "Bootstrap"
        self._support(domain, what)
        try:
            keys = plistlib.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise Refused(EIO, what) from error
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Refused(BAD_MODE, what)
        if found := complaints(keys):
            _say(f"{path}: {'; '.join(found)}")
            raise Refused(BAD_PLIST, what)
        label = keys["Label"]
        if f"{domain}/{label}" in self._disabled:
            raise Refused(DISABLED, what)
        is_there = any(job.label == label for job in self._jobs.values())
        if is_there or time.monotonic() < self._aftermath_s.get(label, 0.0):
            raise Refused(EIO, what)
        sockets = {
            name: [_bound(each) for each in (those if isinstance(those, list) else [those])]
            for name, those in keys.get("Sockets", {}).items()
        }
        job = self._jobs[f"{domain}/{label}"] = Job(path, domain, keys, sockets)
        # SuccessfulExit asks for a first run, for it is judged by one.
        keep = keys.get("KeepAlive", False)
        if keys.get("RunAtLoad") or keep is True or (keep and "SuccessfulExit" in keep):
            self._schedule(job)

    def _kickstart(self, job: Job, *, kill: bool) -> None:
        """At once, whatever the throttle says."""
        if job.process is not None and not kill:
            return
        job.due_s = time.monotonic()
        self._signal(job, signal.SIGKILL)

    def _activate(self, conn: socket.socket, name: str) -> None:
        """For launch_activate_socket(3), asked by whichever process."""
        size = struct.calcsize("3i")
        peer = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid = struct.unpack("3i", peer)[0]
        jobs = [job for job in self._jobs.values() if job.process and job.process.pid == pid]
        fds: list[int] = []
        if not jobs:
            error = errno.ESRCH
        elif name not in jobs[0].sockets:
            error = errno.ENOENT
        elif name in jobs[0].activated:
            error = errno.EALREADY
        else:
            error = 0
            jobs[0].activated.add(name)
            fds = [sock.fileno() for sock in jobs[0].sockets[name]]
        with conn:
            socket.send_fds(conn, [struct.pack("i", error)], fds)


def described(job: Job) -> str:
    """What `launchctl print` says, as far as anybody reads it."""
    if job.process is not None:
        state = "running" if job.told is None else f"{job.told.name}ed"
    else:
        state = "not running" if job.due_s is None else "spawn scheduled"
    lines = [
        f"{job.domain}/{job.label} = {{",
        f"\tactive count = {1 if job.process else 0}",
        f"\tpath = {job.path}",
        f"\ttype = {'LaunchDaemon' if job.domain == 'system' else 'LaunchAgent'}",
        f"\tstate = {state}",
        "",
        f"\tprogram = {job.keys.get('Program') or job.keys['ProgramArguments'][0]}",
        *_block("arguments", job.keys.get("ProgramArguments", [])),
        "",
        *(f"\t{key} = {job.keys[name]}" for name, key in _SHOWN.items() if name in job.keys),
        *_block("default environment", [f"PATH => {PATH}"]),
        *_block("environment", [f"XPC_SERVICE_NAME => {job.label}"]),
        "",
        f"\tdomain = {job.domain}",
        f"\tminimum runtime = {job.throttle_s}",
        f"\texit timeout = {job.exit_s}",
        f"\truns = {job.runs}",
        *([f"\tpid = {job.process.pid}"] if job.process else []),
        *_last_exit(job.ended),
        "}",
    ]
    return "\n".join(lines) + "\n"


_SHOWN = {
    "WorkingDirectory": "working directory",
    "StandardOutPath": "stdout path",
    "StandardErrorPath": "stderr path",
}


def _block(key: str, lines: list[str]) -> list[str]:
    return [f"\t{key} = {{", *(f"\t\t{line}" for line in lines), "\t}"]


def _last_exit(code: int | None) -> list[str]:
    if code is None:
        return ["\tlast exit code = (never exited)"]
    if code < 0:
        return [f"\tlast terminating signal = {signal.strsignal(-code)}: {-code}"]
    return [f"\tlast exit code = {code}" + (": EX_CONFIG" if code == 78 else "")]


def _opened(path: str | None) -> Any:
    return Path(path or os.devnull).open("ab")


def _umask(keys: Mapping[str, Any]) -> int:
    """A string is octal; without one it stays as it is."""
    mask = keys.get("Umask", -1)
    return int(mask, 8) if isinstance(mask, str) else int(mask)


def _limit(keys: Mapping[str, Any]) -> None:
    """In the child: its limits, as far as this machine can give them."""
    for name, kind in LIMITS.items():
        soft, hard = resource.getrlimit(kind)
        top = keys.get("HardResourceLimits", {}).get(name, hard)
        wanted = keys.get("SoftResourceLimits", {}).get(name, soft)
        if top != resource.RLIM_INFINITY:
            wanted = top if wanted == resource.RLIM_INFINITY else min(wanted, top)
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (wanted, top))


def _bound(entry: Mapping[str, Any]) -> socket.socket:
    """One that listens as an entry under Sockets says. Raises Refused."""
    assert entry.get("SockType", "stream") == "stream", "the stand-in has only streams"
    try:
        if path := entry.get("SockPathName"):
            sock = socket.socket(socket.AF_UNIX)
            Path(path).unlink(missing_ok=True)
            sock.bind(path)
            Path(path).chmod(entry.get("SockPathMode", 0o777))
        else:
            family = socket.AF_INET6 if entry.get("SockFamily") == "IPv6" else socket.AF_INET
            sock = socket.socket(family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((entry.get("SockNodeName", ""), int(entry.get("SockServiceName", 0))))
        sock.listen(128)
    except OSError as error:
        _say(f"no socket for {dict(entry)}: {error}")
        raise Refused(EIO, "Bootstrap") from error
    return sock


def _reply(conn: socket.socket, code: int, out: str = "", error: str = "") -> None:
    with conn, suppress(OSError):
        conn.sendall(json.dumps({"code": code, "out": out, "error": error}).encode())


def _say(text: str) -> None:
    sys.stderr.write(f"{time.monotonic():.3f} {text}\n")
    sys.stderr.flush()


# --- for tests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A stand-in that runs."""

    folder: Path
    log: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes `launchctl` of this environment the stand-in's."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', PATH)}"
        return {"PATH": path, "LAUNCHD_STANDIN": str(self.folder / "launchd.sock")}

    def launchctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Its command line, run to its end."""
        return subprocess.run(
            [str(self.folder / "bin" / "launchctl"), *words],
            env=os.environ | self.environ,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def value(self, target: str, key: str) -> str | None:
        """From what `launchctl print` says of a job; None without such a line."""
        start = f"\t{key} = "
        lines = self.launchctl("print", target).stdout.splitlines()
        return next((line.removeprefix(start) for line in lines if line.startswith(start)), None)


def compiled(folder: Path) -> Path | None:
    """The library to preload; None where there is no compiler for it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "launch_activate_socket.so"
    source = HERE / "launch_activate_socket.c"
    words = [compiler, "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*words, str(source)], check=True)
    return library


@contextmanager
def launchd(
    folder: Path, *, shim: Path | None, throttle_scale: float = 1.0, gui: bool = True
) -> Iterator[Running]:
    """Runs a stand-in, its socket and `bin/launchctl` in `folder`; its jobs end with it.

    `folder` must be short, for Unix sockets. Without `gui` no user is logged in at the screen.
    """
    running = Running(folder, folder / "launchd.log")
    (folder / "bin").mkdir()
    command = folder / "bin" / "launchctl"
    words = shlex.join([sys.executable, "-SE", str(HERE / "launchctl.py")])
    command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    command.chmod(0o755)
    plan = {
        "socket": running.environ["LAUNCHD_STANDIN"],
        "shim": str(shim or ""),
        "throttle_scale": throttle_scale,
        "gui": gui,
    }
    with running.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n", running.log.read_text()
        yield running
    finally:
        process.stdin.close()
        try:
            assert process.wait(MOST_EXIT_S + 5) == 0, running.log.read_text()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def main(plan: dict[str, Any]) -> None:
    """Be the stand-in until standard input ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(plan["socket"])
        listener.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        stand_in = Launchd(listener, plan["shim"], plan["throttle_scale"], plan["gui"])
        stand_in.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
