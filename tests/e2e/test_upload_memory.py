"""Large requests cost what the ledger says: one copy each, wherever they wait."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from fakes.gateway import Gateway, gateways
from fakes.machine import wait_until
from fakes.scene import Meter

MIB = 1024 * 1024
UPLOADS = 50
BODY = b'{"model":"big","stream":true,"messages":[{"role":"user","content":"%b"}]}' % (
    b"x" * (31 * MIB)
)
MODELS = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{"data":[]}'
CONFIG = """
[limits]
first_output_s = 120.0
[memory]
budget = "{budget}MiB"
[[upstream]]
name = "box"
url = "http://127.0.0.1:{port}"
[[model]]
name = "big"
targets = ["box/other"]
"""

pytestmark = [
    pytest.mark.alone,
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]


@contextmanager
def silent_upstream() -> Iterator[int]:
    """Serve the list of models, read nothing of any other request; return the port."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])
                    if taken[-1].recv(4, socket.MSG_PEEK) == b"GET ":
                        taken[-1].sendall(MODELS)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for each in taken:
                each.close()


class Uploads:
    """Clients that each send the body, and what became of them."""

    def __init__(self, port: int) -> None:
        self.sent = 0
        self._port = port
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(UPLOADS)]
        for thread in self._threads:
            thread.start()

    @property
    def are_done(self) -> bool:
        """Whether each has sent all or was refused."""
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _send(self) -> None:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._open.append(client)
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
        )
        try:
            client.sendall(head % len(BODY))
            client.sendall(BODY)
            client.settimeout(1.0)
            client.recv(1)
        except TimeoutError:
            self.sent += 1  # no answer, for its upstream is silent; the others are refused
        except OSError:
            pass


@pytest.mark.timeout(300)
def test_uploads_to_a_silent_upstream_stay_within_the_ledger_and_the_budget() -> None:
    """50 of 31 MiB at once: what the worker takes is what its ledger says, and a quarter."""
    budget_mib = 512
    with silent_upstream() as upstream, gateways() as start:
        gateway: Gateway = start(CONFIG.format(budget=budget_mib, port=upstream))
        base_bytes = gateway.status()["memory"]["base_bytes"]
        with Meter(gateway.pid) as meter:
            uploads = Uploads(gateway.port)
            try:
                wait_until(lambda: uploads.are_done, 120, "all have sent or been refused")
                time.sleep(2.0)  # two heartbeats, so that both figures are of now
                status = gateway.status()
                held_bytes = status["worker"]["rss_bytes"] - base_bytes
                ledger_bytes = status["memory"]["ledger_bytes"]
                assert uploads.sent >= 2, uploads.sent
                assert ledger_bytes >= uploads.sent * len(BODY)
                assert held_bytes <= 1.25 * ledger_bytes, (held_bytes, ledger_bytes)
            finally:
                uploads.close()
        assert meter.peak_bytes <= budget_mib * MIB, meter.peak_bytes / MIB
        status = gateway.status()
        assert status["generation"] == 1
        assert status["restarts"] == []
