"""Runs on a computer of its own: installs the package, upgrades it under streams, purges it.

Usage: inside_deb.py OLD.deb NEW.deb TREE. Prints one JSON object; the test outside judges it. It
uses nothing but the standard library, for it runs with the Python of the system. TREE is the
project's own directory, where other tests write meanwhile: what lies below it is the machine's
outside.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
STREAMS = 50
PORT = 8433
UPSTREAM = """
[[upstream]]
name = "box"
url = "http://127.0.0.1:{port}/v1"
"""
# What other programs keep for themselves while packages come and go.
NOT_LOOKED_AT = {
    "/proc", "/sys", "/dev", "/mnt", "/tmp", "/root", "/work", "/home", "/var/tmp", "/var/cache",
    "/var/log/journal", "/run/log", "/run/credentials", "/run/adduser", "/run/systemd/journal",
    "/run/systemd/units", "/run/systemd/incoming", "/run/systemd/propagate",
    "/run/systemd/unit-root",
}  # fmt: skip
finish = threading.Event()


class Upstream(BaseHTTPRequestHandler):
    """A server that streams numbers until it is told to finish."""

    def do_GET(self) -> None:
        body = b'{"object":"list","data":[{"id":"numbers","object":"model"}]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        number = 0
        while not finish.wait(0.2):
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


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


class Reader(threading.Thread):
    """One client, and what it was sent."""

    def __init__(self, model: str = "numbers") -> None:
        super().__init__(daemon=True)
        self._model = model
        self.events = 0
        self.numbers: list[int] = []
        self.ended = "never"

    def run(self) -> None:
        body = json.dumps({"model": self._model, "stream": True, "messages": []})
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=LIMIT_S)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            for line in connection.getresponse():
                if line.startswith(b"data: [DONE]"):
                    self.ended = "whole"
                elif line.startswith(b"data: "):
                    self._take(json.loads(line[6:]))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.ended = repr(error)

    def _take(self, event: dict[str, Any]) -> None:
        self.events += 1
        if "error" in event:
            self.ended = str(event["error"])
            return
        text = event["choices"][0]["delta"].get("content")
        if text is not None and self._model == "numbers":
            self.numbers.append(int(text))

    @property
    def is_whole(self) -> bool:
        """Whether it has every number, once and in order, and a proper end."""
        return self.ended == "whole" and self.numbers == list(range(len(self.numbers)))


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        fail(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def fail(what: str) -> None:
    journal = ["journalctl", "--no-pager", "-n", "60", "-u", "tidegate"]
    log = subprocess.run(journal, capture_output=True, text=True, check=False).stdout
    sys.exit(f"{what}\n{log}")


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + LIMIT_S
    while not (value := condition()):
        if "failed" in run("systemctl", "is-active", "tidegate.service", check=False):
            fail(f"the service failed before: {what}")
        if time.monotonic() > deadline_s:
            fail(f"not within {LIMIT_S:g} s: {what}")
        time.sleep(0.1)
    return value


def get(path: str) -> Any:
    """What the gateway answers, or None while it does not."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None


def status() -> dict[str, Any]:
    words = ["tidegate", "status", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return told


def show(*names: str) -> dict[str, str]:
    text = run("systemctl", "show", "tidegate.service", "-p", ",".join(names))
    return dict(line.split("=", 1) for line in text.splitlines())


def listing() -> set[str]:
    """Every file there is, with its kind and mode, and every user and group."""
    found: set[str] = set()
    for parent, directories, files in os.walk("/"):
        directories[:] = [d for d in directories if str(Path(parent, d)) not in NOT_LOOKED_AT]
        for path in (Path(parent, name) for name in (*directories, *files)):
            # passwd- and the like are the former state of what is compared by its content.
            if str(path) not in NOT_LOOKED_AT and (parent != "/etc" or path.name[-1] != "-"):
                found.add(f"{path} {stat.filemode(path.lstat().st_mode)}")
    for file in ("passwd", "group", "shadow", "gshadow"):
        found |= {f"{file}: {line}" for line in Path("/etc", file).read_text().splitlines()}
    return found


def units() -> set[str]:
    text = run("systemctl", "list-units", "--all", "--no-legend", "--plain", "--full")
    return {line.split()[0] for line in text.splitlines() if "tidegate" in line}


def streams_are_open(readers: list[Reader]) -> bool:
    """Whether each has begun; ends the test at once when one cannot."""
    if ended := [reader.ended for reader in readers if reader.ended != "never"]:
        fail(f"a stream ended before its time: {ended[0]}")
    return all(len(reader.numbers) > 2 for reader in readers)


def main() -> dict[str, Any]:
    old, new, tree = sys.argv[1:]
    NOT_LOOKED_AT.add(tree)
    seen: dict[str, Any] = {}
    # A container's way of saying that packages must not start services. Here they shall.
    Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
    before = listing()

    run("dpkg", "-i", old)
    wait_until(lambda: get("/readyz"), "it answers")
    first = show("MainPID", "ActiveState", "UnitFileState")
    seen["installed"] = first
    seen["user"] = pwd.getpwuid(Path("/proc", first["MainPID"]).stat().st_uid).pw_name
    seen["first"] = status()["version"]
    seen["credentials"] = stat.filemode(Path("/etc/tidegate/credentials").stat().st_mode)

    server = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = Path("/etc/tidegate/config.toml")
    config.write_text(config.read_text() + UPSTREAM.format(port=server.server_port))
    wait_until(lambda: "numbers" in json.dumps(get("/v1/models")), "the upstream is known")
    readers = [Reader() for _ in range(STREAMS)]
    for reader in readers:
        reader.start()
    wait_until(lambda: streams_are_open(readers), "the streams have begun")

    run("dpkg", "-i", new)
    wait_until(lambda: status().get("generation") == 2, "a new worker serves")
    seen["second"] = status()["version"]
    seen["upgraded"] = show("MainPID", "ActiveState", "NRestarts")
    counts = [len(reader.numbers) for reader in readers]
    still = lambda: all(len(r.numbers) > n for r, n in zip(readers, counts, strict=True))  # noqa: E731
    wait_until(still, "the streams go on under the new version")
    finish.set()
    for reader in readers:
        reader.join(LIMIT_S)
    seen["cut"] = [reader.ended for reader in readers if not reader.is_whole]
    seen["kept_config"] = UPSTREAM.splitlines()[1] in config.read_text()

    Path("/etc/systemd/system/tidegate.service.d").mkdir()
    Path("/etc/systemd/system/tidegate.service.d/own.conf").write_text("[Service]\nNice=5\n")
    run("tidegate", "token", "new", "laptop")
    run("dpkg", "--remove", "tidegate")
    seen["kept_by_remove"] = config.exists() and Path("/var/lib/tidegate/tokens").exists()
    run("dpkg", "-i", new)
    seen["again"] = show("ActiveState", "UnitFileState")
    seen["purge"] = run("dpkg", "--purge", "tidegate")
    wait_until(lambda: not units(), "systemd has forgotten the units")
    after = listing()
    seen["left"] = sorted(after - before)
    seen["lost"] = sorted(before - after)
    return seen


if __name__ == "__main__":
    print(json.dumps(main()))
