"""Runs on a computer of its own: the system's unit as it ships, as its own user, fully sandboxed.

Usage: inside_system.py CASE. Prints one JSON object; the test outside judges it. Only the command
line of the unit differs, for the checkout is no package: it is shown below /opt.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
UNITS = Path("/etc/systemd/system")
CONFIG = Path("/etc/tidegate/config.toml")
KEYS = Path("/etc/tidegate/credentials")
DROP_IN = UNITS / "tidegate.service.d" / "test.conf"
PLACES = ["--config", str(CONFIG), "--state-dir", "/var/lib/tidegate"]
RUN = ["/opt/python/bin/python3", "-m", "tidegate"]
PORT = 8433
UNIX = "/run/tidegate/http.sock"
LIMIT_S = 60.0
GOOD = """
listen = ["127.0.0.1:{port}", "unix:{unix}"]
[drain]
stop_limit_s = {stop_limit}
[[upstream]]
name = "box"
url = "http://127.0.0.1:{upstream}/v1"
api_key_file = "box-key"
"""
DEFECT = """
import os, sys
if sys.orig_argv[2:4] == ["tidegate", "run"]:
    from tidegate.watchdog.workers.generations import Generations
    step, seen = Generations.step, []
    def broken(self, event, now_s):
        if type(event).__name__ == "Tick" and os.path.exists("/var/lib/tidegate/defect"):
            seen.append("once more")
            if len(seen) == 3:
                os.unlink("/var/lib/tidegate/defect")
            raise ArithmeticError("a defect")
        return step(self, event, now_s)
    Generations.step = broken
"""
finish = threading.Event()
keys_seen: set[str] = set()


# --- an upstream, and clients -----------------------------------------------------------------


class Upstream(BaseHTTPRequestHandler):
    """Streams numbers until it is told to finish, and remembers which keys it saw."""

    def do_GET(self) -> None:
        body = b'{"object":"list","data":[{"id":"numbers","object":"model"}]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        keys_seen.add(self.headers.get("Authorization", ""))
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        number = 0
        while not finish.wait(0.1):
            self._event(json.dumps({"choices": [{"index": 0, "delta": {"content": str(number)}}]}))
            number += 1
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        self._event(json.dumps(last))
        self._event("[DONE]")

    def _event(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Log nothing."""


class Upstreams(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A gateway that goes away is what is tried here."""


class Reader(threading.Thread):
    """One streaming client, and what it was sent."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.ended = "never"
        self.ended_s = 0.0
        self.start()

    def run(self) -> None:
        body = json.dumps({"model": "numbers", "stream": True, "messages": []})
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=LIMIT_S)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            for line in connection.getresponse():
                if line.startswith(b"data: [DONE]"):
                    self.ended = "whole"
                elif b'"error"' in line and self.ended == "never":
                    self.ended = line.decode()
                elif line.startswith(b"data: "):
                    self.count += 1
        except (OSError, http.client.HTTPException) as error:
            self.ended = repr(error)
        self.ended_s = time.monotonic()


class Load:
    """Clients that connect again and again, by TCP and by the Unix socket; what became of each."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(family, place), daemon=True)
            for family, place in (
                (socket.AF_INET, ("127.0.0.1", PORT)),
                (socket.AF_INET, ("127.0.0.1", PORT)),
                (socket.AF_UNIX, UNIX),
            )
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _ask_on(self, family: int, place: Any) -> None:
        while not self._stop.wait(0.005):
            kind = "unix" if family == socket.AF_UNIX else "tcp"
            self.outcomes[f"{kind} {ask_once(family, place)}"] += 1


def ask_once(family: int, place: Any) -> str:
    """One request on a connection of its own: "connect …", "200" or what went wrong later."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT_S)
        try:
            sock.connect(place)
        except OSError as error:
            return f"connect {error.strerror}"
        try:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = sock.recv(4096)
        except OSError as error:
            return error.strerror or repr(error)
        return answer.split()[1].decode() if answer else "closed"


# --- the manager ------------------------------------------------------------------------------


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        fail(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def fail(what: str) -> None:
    log = run("journalctl", "--no-pager", "-n", "60", check=False)
    sys.exit(f"{what}\n{show()}\n{log}")


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + LIMIT_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            fail(f"not within {LIMIT_S:g} s: {what}")
        time.sleep(0.05)
    return value


def show(unit: str = "tidegate.service") -> dict[str, str]:
    names = (
        "MainPID,ActiveState,SubState,Result,NRestarts,StatusText,ExecMainStatus,WatchdogUSec,"
        "NFileDescriptorStore,NotifyAccess,TimeoutStopUSec,User"
    )
    text = run("systemctl", "show", unit, "-p", names, check=False)
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def journal() -> list[dict[str, str]]:
    """What tidegate itself wrote so far."""
    run("journalctl", "--sync")
    text = run("journalctl", "-o", "json", "-u", "tidegate.service", "_TRANSPORT=stdout")
    return [json.loads(line) for line in text.splitlines()]


def logged(words: str) -> bool:
    return any(words in str(entry["MESSAGE"]) for entry in journal())


def tidegate(*words: str) -> str:
    places = ["--runtime-dir", "/run/tidegate"]
    done = subprocess.run(
        [*RUN, *words, *places], env=environment(), capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def status() -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(tidegate("status", "--json"))
    except json.JSONDecodeError:
        return {}
    return told


def kept() -> dict[str, Any]:
    """What is known of runs beside the worker's memory, and what of it is told by the files."""
    runs = json.loads(tidegate("runs", "--all", "--json"))["data"]
    told = wait_until(lambda: status()["journal"], "a worker tells of its journal")
    places = (Path("/run/tidegate/journal"), Path("/var/lib/tidegate/history"))
    return {
        "runs": [[run["place"], run["state"], run["reason"]] for run in runs],
        "journal": told,
        "history": status()["history"],
        "used": json.loads(tidegate("usage", "--json"))["data"][0]["runs"],
        "modes": {
            str(path): f"{path.stat().st_mode & 0o777:o} {path.owner()}"
            for place in places
            for path in (place, *place.glob("*.db"))
        },
    }


def main_pid() -> int:
    return int(show()["MainPID"])


def worker_pid() -> int:
    return int(status()["worker"]["pid"])


# --- a computer with tidegate on it -----------------------------------------------------------


def environment() -> dict[str, str]:
    return {
        "PYTHONHOME": "/opt/python",
        "LD_LIBRARY_PATH": "/opt/python/lib",  # some interpreters have a library beside them
        "PYTHONPATH": os.environ["OPT_PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/usr/bin:/bin",
    }


def prepare(more: str = "") -> None:
    """What the package would do: a user, the places, the units."""
    shown = {"/opt/python": sys.base_prefix}
    shown |= {f"/opt/path{n}": path for n, path in enumerate(os.environ["PYTHONPATH"].split(":"))}
    for place, path in shown.items():
        Path(place).mkdir(parents=True)
        run("mount", "--bind", path, place)
    os.environ["OPT_PATH"] = ":".join(place for place in shown if place != "/opt/python")
    run("useradd", "--system", "--no-create-home", "tidegate")
    KEYS.mkdir(parents=True, mode=0o700)
    for unit in ("tidegate.service", "tidegate.socket"):
        shutil.copy(ROOT / "systemd" / unit, UNITS / unit)
    DROP_IN.parent.mkdir()
    drop_in(more)


def drop_in(more: str = "") -> None:
    env = " ".join(f'"{name}={value}"' for name, value in environment().items())
    command = " ".join([*RUN, "run", *PLACES, "--runtime-dir", "/run/tidegate"])
    DROP_IN.write_text(
        f"[Service]\nEnvironment={env}\nExecStart=\nExecStart={command}\nRestartSec=0.2\n{more}"
    )
    run("systemctl", "daemon-reload")


def write_config(upstream: Upstreams, stop_limit: float = 2.0, more: str = "") -> None:
    numbers = {"port": PORT, "unix": UNIX, "stop_limit": stop_limit}
    CONFIG.write_text(GOOD.format(upstream=upstream.server_port, **numbers) + more)


def serve_numbers() -> Upstreams:
    server = Upstreams(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def start() -> dict[str, str]:
    run("systemctl", "start", "tidegate.service")
    return show()


def begin_stream() -> Reader:
    reader = Reader()
    wait_until(lambda: reader.count > 2 or reader.ended != "never", "a stream has begun")
    if reader.ended != "never":
        fail(f"the stream ended: {reader.ended}")
    return reader


def goes_on(reader: Reader) -> bool:
    count = reader.count
    wait_until(lambda: reader.count > count or reader.ended != "never", "the stream goes on")
    return reader.ended == "never"


def writes(pid: int, path: str) -> str:
    """What the service's own user hears when it writes there, in the service's view of the files.

    nsenter joins the mounts; the user's rights are its own, the sandbox's are the mounts.
    """
    command = ["nsenter", "--target", str(pid), "--mount", "setpriv", "--reuid=tidegate"]
    command += ["--regid=tidegate", "--clear-groups", "touch", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition(": ")[2]


def process(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    return {name: fields[name] for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd")}


def break_with(code: str, more: str = "") -> None:
    """Have every Python of the service run this first."""
    broken = Path("/opt/broken")
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(code)
    os.environ["OPT_PATH"] = f"{broken}:{os.environ['OPT_PATH']}"
    drop_in(more)


# --- the cases --------------------------------------------------------------------------------


def life() -> dict[str, Any]:
    """In the full sandbox: it starts, streams, is recycled, loses a worker, is reloaded."""
    seen: dict[str, Any] = {}
    prepare()
    upstream = serve_numbers()
    write_config(upstream)
    (KEYS / "box-key").write_text("sk-canary-7\n")
    seen["start"] = start()
    wait_until(lambda: show()["StatusText"].startswith("level 0, "), "a status")
    seen["status"] = show()
    seen["memory"] = status()["memory"]
    seen["process"] = process(worker_pid())
    pid = main_pid()
    seen["writes"] = {
        path: writes(pid, path)
        for path in ("/etc/tidegate/x", "/usr/x", "/var/lib/x", "/var/lib/tidegate/x")
    }
    seen["environment"] = [
        name.decode()
        for name in Path(f"/proc/{worker_pid()}/environ").read_bytes().split(b"\0")
        if name.startswith((b"NOTIFY_", b"WATCHDOG_", b"LISTEN_"))
    ]
    reader = begin_stream()
    seen["keys"] = sorted(keys_seen)
    tidegate("recycle", "--no-wait")
    wait_until(lambda: status()["generation"] == 2, "the second worker serves")
    seen["streamed_over_recycle"] = goes_on(reader)
    finish.set()
    reader.join(LIMIT_S)
    finish.clear()
    seen["stream"] = reader.ended
    os.kill(worker_pid(), signal.SIGKILL)
    wait_until(lambda: logged("worker 3 is ready"), "a third worker serves")
    seen["after_kill"] = show()
    seen["kept_over_kill"] = kept()
    write_config(upstream, 3.0)
    run("systemctl", "reload", "tidegate.service")
    wait_until(lambda: logged("config reloaded"), "the good file is in force")
    wait_until(lambda: show()["SubState"] == "running", "systemd saw the end of the reload")
    CONFIG.write_text("nonsense = 1\n")
    run("systemctl", "reload", "tidegate.service")
    wait_until(lambda: logged("nonsense"), "the bad file is refused")
    wait_until(lambda: show()["SubState"] == "running", "and the reload has ended")
    seen["after_bad_reload"] = show()
    seen["healthz"] = ask_once(socket.AF_INET, ("127.0.0.1", PORT))
    run("systemctl", "stop", "tidegate.service")
    seen["stop"] = show()
    seen["journal"] = [[e.get("PRIORITY"), str(e["MESSAGE"])] for e in journal()]
    run("systemctl", "start", "tidegate.service", check=False)
    wait_until(lambda: show()["ActiveState"] == "failed", "a bad file is not started with")
    later_s = time.monotonic() + 1.5  # several of its restart delays
    wait_until(lambda: time.monotonic() > later_s, "time passes")
    seen["bad_config"] = show()

    write_config(upstream)
    slow = "import sys, time\nif 'tidegate.gateway.worker' in sys.orig_argv: time.sleep(6)\n"
    break_with(slow, "TimeoutStartSec=3\n")
    run("systemctl", "start", "tidegate.service")
    seen["slow_start"] = show()
    return seen


def restarts() -> dict[str, Any]:
    """Restarts and a crash while clients connect without a pause; then a stop with a stream."""
    seen: dict[str, Any] = {}
    prepare()
    upstream = serve_numbers()
    write_config(upstream)
    (KEYS / "box-key").write_text("k\n")
    seen["start"] = start()
    with Load() as load:
        wait_until(lambda: load.outcomes["unix 200"] > 20, "clients are served")
        reader = begin_stream()
        begun_s = time.monotonic()
        run("systemctl", "restart", "tidegate.service")
        seen["restart_s"] = time.monotonic() - begun_s
        served = load.outcomes["unix 200"]
        wait_until(lambda: load.outcomes["unix 200"] > served + 20, "clients are served again")
    seen["stream_at_restart"] = reader.ended
    seen["restart"] = dict(load.outcomes)
    seen["after_restart"] = show()
    seen["kept_over_restart"] = kept()
    former = main_pid()
    with Load() as load:
        wait_until(lambda: load.outcomes["unix 200"] > 20, "clients are served")
        os.kill(former, signal.SIGKILL)
        wait_until(lambda: main_pid() not in (0, former), "another process")
        wait_until(lambda: show()["SubState"] == "running", "which is ready")
        served = load.outcomes["unix 200"]
        wait_until(lambda: load.outcomes["unix 200"] > served + 20, "clients are served again")
    seen["crash"] = dict(load.outcomes)
    seen["after_crash"] = show()
    seen["kept_over_crash"] = kept()

    # The setting changes while it is down: the store follows.
    CONFIG.write_text(CONFIG.read_text().replace(f', "unix:{UNIX}"', ""))
    run("systemctl", "restart", "tidegate.service")
    seen["one_address"] = show()
    seen["unix_gone"] = ask_once(socket.AF_UNIX, UNIX)

    write_config(upstream, stop_limit=8.0)
    drop_in("TimeoutStopSec=2\n")
    run("systemctl", "restart", "tidegate.service")
    reader = begin_stream()
    stopping = subprocess.Popen(["systemctl", "stop", "tidegate.service"])
    begun_s = time.monotonic()
    wait_until(lambda: time.monotonic() > begun_s + 5.0, "more than TimeoutStopSec passes")
    seen["while_draining"] = {**show(), "streams": goes_on(reader)}
    stopping.wait(LIMIT_S)
    reader.join(LIMIT_S)
    seen["drained_s"] = reader.ended_s - begun_s
    seen["stream_at_stop"] = reader.ended
    seen["stop"] = show()
    return seen


def activation() -> dict[str, Any]:
    """The socket unit: the first connection starts it, no restart closes a port, a crash loop."""
    seen: dict[str, Any] = {}
    prepare()
    upstream = serve_numbers()
    write_config(upstream)
    CONFIG.write_text(CONFIG.read_text().replace(str(PORT), "9999"))
    (KEYS / "box-key").unlink(missing_ok=True)
    CONFIG.write_text(CONFIG.read_text().replace('api_key_file = "box-key"', ""))
    folder = UNITS / "tidegate.socket.d"
    folder.mkdir()
    (folder / "test.conf").write_text(f"[Socket]\nListenStream={UNIX}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "tidegate.socket")
    seen["before"] = show()["ActiveState"]
    seen["first"] = ask_once(socket.AF_INET, ("127.0.0.1", PORT))
    wait_until(lambda: show()["ActiveState"] == "active", "systemd knows that it is ready")
    seen["after"] = show()
    seen["listen"] = status()["listen"]
    seen["log"] = [str(entry["MESSAGE"]) for entry in journal()]
    with Load() as load:
        wait_until(lambda: load.outcomes["unix 200"] > 20, "clients are served")
        run("systemctl", "restart", "tidegate.service")
        os.kill(main_pid(), signal.SIGKILL)
        wait_until(lambda: show()["NRestarts"] == "1", "it is restarted")
        wait_until(lambda: show()["SubState"] == "running", "and ready")
        served = load.outcomes["unix 200"]
        wait_until(lambda: load.outcomes["unix 200"] > served + 20, "clients are served again")
    seen["restart"] = dict(load.outcomes)
    run("systemctl", "stop", "tidegate.socket", "tidegate.service")

    # A worker that cannot even be imported.
    break_with(
        "import os, sys\nif 'tidegate.gateway.worker' in sys.orig_argv: os._exit(3)\n",
        "[Unit]\nStartLimitBurst=2\n",
    )
    run("systemctl", "reset-failed", "tidegate.service", check=False)
    run("systemctl", "start", "tidegate.service", check=False)
    wait_until(lambda: show()["ActiveState"] == "failed", "systemd gives up too")
    seen["loop"] = show()
    seen["loop_log"] = [[e.get("PRIORITY"), str(e["MESSAGE"])] for e in journal()][-12:]
    return seen


def hung() -> dict[str, Any]:
    """The watchdog stops turning; then its worker; then the former's tick fails three times."""
    seen: dict[str, Any] = {}
    prepare("WatchdogSec=3\n")
    write_config(serve_numbers())
    (KEYS / "box-key").write_text("k\n")
    former = start()
    os.kill(int(former["MainPID"]), signal.SIGSTOP)
    wait_until(lambda: show()["Result"] == "watchdog", "systemd ended it for its silence")
    wait_until(lambda: show()["NRestarts"] == "1", "and started it again")
    wait_until(lambda: show()["SubState"] == "running", "it serves")
    seen["watchdog"] = {"former": former, "again": show()}
    os.kill(worker_pid(), signal.SIGSTOP)
    wait_until(lambda: status()["generation"] == 2, "the worker is replaced")
    seen["worker"] = show()
    seen["log"] = [str(entry["MESSAGE"]) for entry in journal()]
    break_with(DEFECT)
    run("systemctl", "restart", "tidegate.service")
    Path("/var/lib/tidegate/defect").touch()
    shutil.chown("/var/lib/tidegate/defect", "tidegate")
    wait_until(lambda: show()["NRestarts"] == "1", "systemd starts it again")
    wait_until(lambda: show()["SubState"] == "running", "it serves")
    run("systemctl", "stop", "tidegate.service")
    run("journalctl", "--sync")
    seen["ends"] = run("journalctl", "-u", "tidegate.service", "-o", "cat", "_PID=1").splitlines()
    seen["last_log"] = [[e.get("PRIORITY"), str(e["MESSAGE"])] for e in journal()]
    return seen


CASES = {"life": life, "restarts": restarts, "activation": activation, "hung": hung}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]]()))
