"""What is written to the notification socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.managers.systemd.notify import Notifier, stored_name


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The service manager's end; NOTIFY_SOCKET names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@tidegate-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def heard(manager: socket.socket) -> list[str]:
    """All that has arrived."""
    texts = []
    while True:
        try:
            texts.append(manager.recv(8192).decode())
        except BlockingIOError:
            return texts


def test_words_arrive_as_utf_8(manager: socket.socket) -> None:
    """Each call is one message; the environment is used up."""
    notifier = Notifier()
    notifier.ready()
    notifier.status("Stufe 1 → 日本")
    notifier.reloading(12.5)
    notifier.alive()
    notifier.extend_timeout(15.0)
    notifier.stopping()
    notifier.close()
    assert heard(manager) == [
        "READY=1",
        "STATUS=Stufe 1 → 日本",
        "RELOADING=1\nMONOTONIC_USEC=12500000",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=15000000",
        "STOPPING=1",
    ]
    assert "NOTIFY_SOCKET" not in os.environ


def test_status_is_sent_when_it_changes(manager: socket.socket) -> None:
    """The same line twice is sent once, and a line end cannot smuggle another word in."""
    notifier = Notifier()
    for text in ("a", "a", "b\nREADY=1", "a", "c\x1b[2J\x9b\u202e\u2028"):
        notifier.status(text)
    notifier.close()
    shown = "STATUS=c\\x1b[2J\\x9b\\u202e\\u2028"  # `systemctl status` prints it as it is
    assert heard(manager) == ["STATUS=a", "STATUS=b READY=1", "STATUS=a", shown]


def test_manager_that_does_not_read_holds_nothing_up(manager: socket.socket) -> None:
    """Pings are lost without a wait; READY is kept and arrives when there is room again."""
    notifier = Notifier()
    for _ in range(5000):
        notifier.alive()
    notifier.ready()
    assert "READY=1" not in heard(manager)
    notifier.flush()
    assert heard(manager) == ["READY=1"]
    notifier.close()


def test_without_a_manager_nothing_happens() -> None:
    """No NOTIFY_SOCKET: every call does nothing, and no ping is sent."""
    notifier = Notifier({"WATCHDOG_USEC": "1000"})
    notifier.ready()
    notifier.status("x")
    notifier.close()
    assert notifier.ping_every_s is None


@pytest.mark.parametrize(
    ("usec", "pid", "every_s"),
    [
        ("60000000", None, 30.0),
        ("60000000", "own", 30.0),
        ("60000000", "1", None),
        ("0", None, None),
        ("x", None, None),
        ("", None, None),
    ],
)
def test_ping_interval(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    usec: str,
    pid: str | None,
    every_s: float | None,
) -> None:
    """Half of WATCHDOG_USEC, if WATCHDOG_PID is ours or absent."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    notifier = Notifier()
    notifier.close()
    assert notifier.ping_every_s == every_s
    assert "WATCHDOG_USEC" not in os.environ


def received(manager: socket.socket) -> tuple[str, list[int]]:
    """One message and the descriptors that came with it."""
    data, fds, _, _ = socket.recv_fds(manager, 8192, 4)
    return data.decode(), fds


def test_a_socket_is_stored_under_a_name_that_holds_no_colon(manager: socket.socket) -> None:
    """The descriptor itself goes along, and is the very socket."""
    notifier = Notifier()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.store(stored_name("127.0.0.1:8433"), sock)
        text, fds = received(manager)
        with socket.socket(fileno=fds[0]) as stored:
            assert stored.getsockname() == sock.getsockname()
    assert text == "FDSTORE=1\nFDNAME=listen-127.0.0.1=8433\nFDPOLL=0"
    notifier.drop(stored_name("unix:/run/x.sock"))
    assert heard(manager) == ["FDSTOREREMOVE=1\nFDNAME=listen-unix=/run/x.sock"]
    notifier.close()


def test_barrier_returns_when_all_was_read(manager: socket.socket) -> None:
    """It waits for the descriptor that goes along to be closed, and no longer than its limit."""
    notifier = Notifier()
    notifier.stopping()
    notifier.barrier(0.05)  # the manager does not read
    assert received(manager)[0] == "STOPPING=1"
    text, fds = received(manager)
    assert (text, len(fds)) == ("BARRIER=1", 1)
    os.close(fds[0])
    done = threading.Event()

    def wait() -> None:
        notifier.barrier(60.0)
        done.set()

    threading.Thread(target=wait, daemon=True).start()
    manager.setblocking(True)
    os.close(received(manager)[1][0])
    assert done.wait(20)
    notifier.close()


def test_the_last_word_is_a_trigger(manager: socket.socket) -> None:
    """What asks systemd to act as if its watchdog had run out."""
    notifier = Notifier()
    notifier.trigger()
    notifier.close()
    assert heard(manager) == ["WATCHDOG=trigger"]


def test_environment_is_handed_on_as_it_was(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the program that this process becomes."""
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    place = os.environ["NOTIFY_SOCKET"]
    notifier = Notifier()
    assert "WATCHDOG_USEC" not in os.environ
    assert notifier.environment() == {
        "NOTIFY_SOCKET": place,
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    notifier.close()


def test_without_a_manager_nothing_is_stored_or_waited_for() -> None:
    """No NOTIFY_SOCKET: nothing is sent, stored or waited for."""
    notifier = Notifier({})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.store("listen-x", sock)
    notifier.barrier(60.0)
    notifier.trigger()
    assert not notifier.is_connected
    notifier.close()


@pytest.mark.parametrize(
    "address", ["unix:/run/höhle/s", "unix:/run/" + "x" * 300, "unix:/run/\x07"]
)
def test_a_stored_name_is_one_that_systemd_takes(address: str) -> None:
    """Printable ASCII of at most 255 bytes; systemd would call it something else otherwise."""
    name = stored_name(address)
    assert name.startswith("listen-")
    assert len(name) <= 255
    assert name.isascii()
    assert name.isprintable()
    assert name != stored_name(address + "x")
