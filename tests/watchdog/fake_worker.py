"""A scripted worker: it speaks the channel's protocol and answers every connection with its number.

GET /hang stops the loop, GET /grow?MIB holds memory that no ledger explains, GET /ledger?MIB holds
memory that its ledger explains until a sweep, GET /config asks for a reload.
A draining worker lives until its `--drain-s` is over.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import selectors
import signal
import socket
import sys
import time

from tidegate.core.memory.report import StepReport
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.lines import ChannelError
from tidegate.core.runs.summary import RunSummary
from tidegate.core.upstreams.summary import UpstreamModels, UpstreamStatus
from tidegate.logs import handler
from tidegate.watchdog.workers.channel import Channel

BEAT_S = 0.1


class FakeWorker:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.channel = Channel(socket.socket(fileno=options.channel))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.channel, selectors.EVENT_READ, self.hear)
        self.listeners: list[socket.socket] = []
        self.configure: msg.Configure | None = None
        self.held: list[bytearray] = []
        self.ledger_bytes = 0
        self.runs_total = 0
        self.swept_bytes = self.swept_runs = 0
        self.end_s: float | None = None

    def serve(self) -> None:
        next_beat_s = 0.0
        while self.end_s is None or time.monotonic() < self.end_s:
            for key, _ in self.selector.select(0.02):
                key.data(key.fileobj)
            if self.configure is not None and time.monotonic() >= next_beat_s:
                next_beat_s = time.monotonic() + BEAT_S
                self.beat()

    def hear(self, _: object) -> None:
        try:
            for line in self.channel.receive():
                self.on_message(msg.decode_from_watchdog(line))
        except ChannelError:
            os._exit(0)

    def on_message(self, message: msg.FromWatchdog) -> None:
        match message:
            case msg.Configure() if self.configure is None:
                self.begin(message)
            case msg.Configure():
                self.configure = message
                self.say(msg.Configured(request=message.request))
            case msg.AskBeat():
                self.beat(message.request)
            case msg.Sweep():
                freed, self.ledger_bytes = self.ledger_bytes, 0
                if freed:
                    self.held.clear()
                    self.swept_runs += 1
                    self.swept_bytes += freed
                self.say(msg.Swept(request=message.request, runs=int(bool(freed)), bytes=freed))
            case msg.Reclaim():
                reports = [self.relieve(step) for step in message.steps]
                self.say(msg.Reclaimed(request=message.request, steps=reports))
            case msg.ListRuns():
                run = RunSummary(
                    id=f"run-{self.number}", state="completed", reason=None, model="m",
                    upstream="box", attempts=1, created=float(self.number), ended=2.0,
                    first_seq=0, next_seq=1, bytes=1, subscribers=0,
                )  # fmt: skip
                self.say(msg.RunList(request=message.request, runs=[run], total=1))
            case msg.ListModels():
                box = UpstreamModels(name=f"box{self.number}", url="u", kind=None, state="ok")
                self.say(msg.ModelList(request=message.request, upstreams=[box], aliases=[]))
            case msg.StartDraining():
                for listener in self.listeners:
                    self.selector.unregister(listener)
                self.listeners = []
                self.say(msg.Draining())
                self.end_s = time.monotonic() + min(self.options.drain_s, message.limit_s)

    def relieve(self, step: str) -> StepReport:
        """All that the ledger explains is stale; a trim has nothing to give back."""
        freed = 0
        if step == "stale" and self.ledger_bytes:
            freed, self.ledger_bytes = self.ledger_bytes, 0
            self.held.clear()
            self.swept_runs += 1
            self.swept_bytes += freed
        return StepReport(
            step=step, runs=int(bool(freed)), promised_bytes=freed, freed_bytes=freed, took_s=0.001
        )

    @property
    def number(self) -> int:
        assert self.configure is not None
        return self.configure.generation

    def begin(self, configure: msg.Configure) -> None:
        self.configure = configure
        if self.options.slow_from and configure.generation >= self.options.slow_from:
            time.sleep(3600)
        for inherited in configure.listeners:
            listener = socket.socket(fileno=inherited.fd)
            listener.setblocking(False)
            self.listeners.append(listener)
            self.selector.register(listener, selectors.EVENT_READ, self.accept)
        ready = msg.Ready(pid=os.getpid(), found=["Fake at nowhere"], beats_when_asked=True)
        self.say(ready)

    def accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return
        with client:
            client.settimeout(5)
            path = client.recv(4096).split(b" ")[1].decode()
            self.runs_total += 1
            body = f"{self.number}".encode()
            client.sendall(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
        self.act(*path.partition("?")[::2])

    def act(self, path: str, argument: str) -> None:
        match path:
            case "/hang":
                time.sleep(3600)
            case "/grow" | "/ledger":
                size = int(argument) * 1024 * 1024
                self.held.append(bytearray(os.urandom(4096)) * (size // 4096))
                self.ledger_bytes += size if path == "/ledger" else 0
            case "/config":
                self.say(msg.ConfigChanged())

    def beat(self, request: int = 0) -> None:
        upstream = UpstreamStatus(name="box", url="http://127.0.0.1:1", state="ok", active=1)
        self.say(
            msg.Heartbeat(
                request=request,
                rss_bytes=1, ledger_bytes=self.ledger_bytes, loop_lag_ms=0.1, runs_active=0,
                runs_finished=self.runs_total, runs_total=self.runs_total,
                swept_runs=self.swept_runs, swept_bytes=self.swept_bytes,
                swept_last_reason="told to" if self.swept_runs else None, upstreams=[upstream],
            )
        )  # fmt: skip

    def say(self, message: msg.Message) -> None:
        self.channel.send(message)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--slow-from", type=int, default=0)
    parser.add_argument("--drain-s", type=float, default=0.0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if sys.platform == "linux":  # a hung worker sees no end of file
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    handler.setup("worker")
    FakeWorker(options).serve()


if __name__ == "__main__":
    main()
