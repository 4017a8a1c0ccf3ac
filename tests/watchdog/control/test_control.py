"""The asking side of control.sock, where no watchdog answers well."""

from __future__ import annotations

import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.watchdog.control import server as control
from tidegate.watchdog.control.client import RETRY_S, SOCKET_NAME, NotRunning, ask
from tidegate.watchdog.control.commands import Commands
from tidegate.watchdog.control.server import ControlClient, ControlServer

REQUEST = ControlRequest(verb="status")


def answering(path: Path, answer: bytes | None) -> threading.Thread:
    """A daemon that takes one request and answers so; None: it only hangs up."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path / SOCKET_NAME))
    server.listen()

    def serve() -> None:
        with server, server.accept()[0] as client:
            client.recv(4096)
            if answer is not None:
                client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_no_watchdog_is_there(tmp_path: Path) -> None:
    """No socket at all, and one that a dead daemon left: not running."""
    with pytest.raises(NotRunning, match=r"control\.sock"):
        ask(tmp_path, REQUEST, 1.0)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(NotRunning):
        ask(tmp_path, REQUEST, 1.0)


def test_no_answer_has_a_limit(tmp_path: Path) -> None:
    """A daemon that hangs is a TimeoutError."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET_NAME))
        silent.listen()
        with pytest.raises(TimeoutError):
            ask(tmp_path, REQUEST, 0.1)


def test_full_queue_is_waited_for(tmp_path: Path) -> None:
    """A daemon that is busy accepts later; one that never does is a TimeoutError."""
    path = str(tmp_path / SOCKET_NAME)
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as others:
        busy.bind(path)
        busy.listen(0)
        connected: list[socket.socket] = []
        while True:
            other = others.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            try:
                other.connect(path)
            except BlockingIOError:
                break
            connected.append(other)
        with pytest.raises(TimeoutError):
            ask(tmp_path, REQUEST, 0.1)

        def accept_late() -> None:
            for _ in connected:
                busy.accept()[0].close()
            with busy.accept()[0] as client:
                client.recv(4096)
                client.sendall(msgspec.json.encode(ControlReply(ok=True)) + b"\n")

        later = threading.Timer(0.2, accept_late)
        later.start()
        assert ask(tmp_path, REQUEST, 20.0).ok
        later.join()


def test_daemon_that_ends_before_it_answers(tmp_path: Path) -> None:
    """An end of file in the answer's place is said to be that."""
    thread = answering(tmp_path, None)
    with pytest.raises(NotRunning, match="ended before"):
        ask(tmp_path, REQUEST, 20.0)
    thread.join()


def test_large_answer_is_whole(tmp_path: Path) -> None:
    """A listing of many runs comes in many reads."""
    thread = answering(tmp_path, b'{"ok":true,"result":"' + b"x" * 1_000_000 + b'"}\n')
    reply = ask(tmp_path, REQUEST, 20.0)
    thread.join()
    assert reply.ok
    assert len(bytes(reply.result)) == 1_000_002


@pytest.fixture
def asked() -> list[tuple[ControlClient, ControlRequest]]:
    """What came in."""
    return []


@pytest.fixture
def server(
    tmp_path: Path, asked: list[tuple[ControlClient, ControlRequest]]
) -> Iterator[tuple[ControlServer, selectors.BaseSelector]]:
    """The watchdog's side, which never answers by itself."""
    with selectors.DefaultSelector() as selector:
        server = ControlServer(
            tmp_path / SOCKET_NAME, selector, lambda *each: asked.append(each), time.monotonic
        )
        yield server, selector
        server.close()


def turn(selector: selectors.BaseSelector) -> None:
    for key, mask in selector.select(0):
        key.data(mask)


def test_a_client_that_an_earlier_event_of_the_turn_dropped(
    tmp_path: Path, server: tuple[ControlServer, selectors.BaseSelector]
) -> None:
    """A crowd makes room by dropping silent ones, whose own events are still in the hand."""
    _, selector = server
    path = str(tmp_path / SOCKET_NAME)
    with ExitStack() as stack:
        for _ in range(control.MAX_CLIENTS):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
            turn(selector)
        silent = len(selector.get_map()) - 1
        assert silent == control.MAX_CLIENTS
        stack.pop_all().close()  # every one of them has an event now: it hung up
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(path)
            turn(selector)
            turn(selector)
        turn(selector)
    assert len(selector.get_map()) == 1  # the listening socket


def test_a_client_that_hung_up_is_nothing_to_keep(
    tmp_path: Path,
    server: tuple[ControlServer, selectors.BaseSelector],
    asked: list[tuple[ControlClient, ControlRequest]],
) -> None:
    """An upgrade hands over the descriptors of the clients that wait, and no others."""
    control_server, selector = server
    commands = Commands(SimpleNamespace(recycle=lambda: None), None, control_server, 1.0)  # type: ignore[arg-type]
    path = str(tmp_path / SOCKET_NAME)
    with socket.socket(socket.AF_UNIX) as waits, socket.socket(socket.AF_UNIX) as gone:
        for client in (waits, gone):
            client.connect(path)
            client.sendall(msgspec.json.encode(ControlRequest(verb="recycle")) + b"\n")
        for _ in range(3):
            turn(selector)
        for each in asked:
            commands.on_request(*each)
        assert len(commands.kept().until_recycled) == 2
        gone.close()
        turn(selector)
        kept = commands.kept().until_recycled
        assert len(kept) == 1
        assert kept[0] >= 0


def test_answers_that_are_not_read_are_bounded_in_sum(
    tmp_path: Path,
    server: tuple[ControlServer, selectors.BaseSelector],
    asked: list[tuple[ControlClient, ControlRequest]],
) -> None:
    """One as long as any may wait; then others are told to ask again."""
    control_server, selector = server
    path = str(tmp_path / SOCKET_NAME)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(8)]
        for client in clients:
            client.connect(path)
            client.sendall(msgspec.json.encode(REQUEST) + b"\n")
            turn(selector)
            turn(selector)
        assert len(asked) == 8
        large = msgspec.Raw(b'"' + b"x" * (2 * 1024 * 1024) + b'"')
        for client, _ in asked:
            control_server.reply(client, ControlReply(ok=True, result=large))
        waiting = sum(len(client.unsent) for client, _ in asked)
        assert 1024 * 1024 < waiting <= control.MAX_UNSENT_BYTES
        clients[-1].settimeout(5)
        assert b"ask again" in clients[-1].recv(4096)


def test_no_descriptor_for_a_client_does_not_spin(
    server: tuple[ControlServer, selectors.BaseSelector], tmp_path: Path
) -> None:
    """Out of descriptors, the loop goes on at a walk; the client waits, and is let in later."""
    control_server, selector = server
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / SOCKET_NAME))
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        try:
            begun_s, turns = time.monotonic(), 0
            while time.monotonic() - begun_s < 0.5:
                turn(selector)
                turns += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert turns <= 0.5 / RETRY_S + 1
        turn(selector)
        assert "clients=1" in repr(control_server)
