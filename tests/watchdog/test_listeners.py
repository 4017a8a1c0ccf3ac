"""Which sockets are used: the setting's, the service manager's, and those that it kept for us."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tidegate.managers import sockets
from tidegate.managers.sockets import BoundSocket
from tidegate.managers.systemd.notify import Notifier, stored_name
from tidegate.watchdog.listeners import Listeners


class Store(Notifier):
    """A notifier that remembers what is stored."""

    def __init__(self) -> None:
        super().__init__({})
        self.names: set[str] = set()

    def store(self, name: str, sock: socket.socket) -> None:
        self.names.add(name)

    def drop(self, name: str) -> None:
        self.names.discard(name)

    @property
    def is_connected(self) -> bool:
        return True


def kept(address: str) -> BoundSocket:
    """A socket for `address` as it comes back from the store."""
    bound = sockets.bind(address)
    name = stored_name(sockets.canonical(address))
    return BoundSocket(bound.sock, sockets.ADOPTED, bound.address, stored=name)


def test_what_we_bound_is_stored_and_what_retired_is_dropped() -> None:
    """The store holds what is listened on, no more."""
    store = Store()
    listeners = Listeners([], store)
    first = listeners.open(["127.0.0.1:0"])
    listeners.use(first)
    assert store.names == {"listen-127.0.0.1=0"}
    listeners.use(listeners.open(["[::1]:0"]))
    assert store.names == {"listen-127.0.0.1=0", "listen-==1=0"}
    listeners.close_retired()
    assert store.names == {"listen-==1=0"}
    listeners.close()


def test_a_kept_socket_serves_again() -> None:
    """The same socket, so that clients which connected meanwhile are served."""
    store, socket_kept = Store(), kept("127.0.0.1:0")
    listeners = Listeners([socket_kept], store)
    with socket.create_connection(socket_kept.sock.getsockname()):
        listeners.use(listeners.open(["127.0.0.1:0"]))
        assert listeners.addresses == [socket_kept.address]
        served, _ = listeners.bound[0].sock.accept()
        served.close()
    listeners.close()


def test_a_kept_socket_outlives_an_address_that_is_taken() -> None:
    """A parked daemon tries again and again, and loses nothing of what it was left by that."""
    store, socket_kept = Store(), kept("127.0.0.1:0")
    listeners = Listeners([socket_kept], store)
    with socket.create_server(("127.0.0.1", 0)) as other:
        both = ["127.0.0.1:0", f"127.0.0.1:{other.getsockname()[1]}"]
        for _ in range(2):
            with pytest.raises(sockets.ListenError, match="another program"):
                listeners.open(both)
    listeners.use(listeners.open(both))
    assert listeners.addresses[0] == socket_kept.address
    listeners.close()


def test_a_kept_socket_that_is_not_configured_is_closed() -> None:
    """The setting changed while it was down."""
    store, unwanted = Store(), kept("127.0.0.1:0")
    store.names.add(str(unwanted.stored))
    listeners = Listeners([unwanted], store)
    listeners.use(listeners.open(["[::1]:0"]))
    assert unwanted.sock.fileno() == -1
    assert store.names == {"listen-==1=0"}
    listeners.close()


def test_a_kept_unix_socket_without_its_file_is_made_anew(tmp_path: Path) -> None:
    """No client could find it; with its file it is used, and a stop leaves the file."""
    address = f"unix:{tmp_path}/s"
    lost = kept(address)
    (tmp_path / "s").unlink()
    listeners = Listeners([lost], Store())
    listeners.use(listeners.open([address]))
    assert listeners.bound[0].sock is not lost.sock
    listeners.refuse_newcomers()
    assert (tmp_path / "s").is_socket()
    listeners.close()
    assert (tmp_path / "s").is_socket()


def test_a_kept_unix_socket_that_is_not_configured_takes_its_file_along(tmp_path: Path) -> None:
    """It was ours, and nothing else would remove it later."""
    listeners = Listeners([kept(f"unix:{tmp_path}/s")], Store())
    listeners.use(listeners.open(["127.0.0.1:0"]))
    assert list(tmp_path.iterdir()) == []
    listeners.close()


@pytest.mark.parametrize("heard", [True, False])
def test_sockets_of_a_socket_unit_stand_above_the_setting(heard: bool) -> None:
    """They are neither stored nor replaced, whatever the setting says."""
    bound = sockets.bind("127.0.0.1:0")
    passed = BoundSocket(bound.sock, sockets.ADOPTED, bound.address)
    store = Store()
    listeners = Listeners([passed, kept("[::1]:0")] if heard else [passed], store)
    listeners.use(listeners.open(["127.0.0.1:1"]))
    assert listeners.addresses == [bound.address]
    assert store.names == set()
    listeners.close()


linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere SO_REUSEADDR lets addresses of one port stand alone"
)


@linux_only
@pytest.mark.parametrize(
    ("former", "new"),
    [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("[::1]", "[::]"), ("[::]", "[::1]")],
)
def test_a_wider_or_narrower_address_may_have_the_same_port(former: str, new: str) -> None:
    """Both stand beside each other; until a worker listens on the new one, the former one gets all.

    Another program is refused there before, meanwhile and afterwards.
    """
    listeners = Listeners([], Store())
    listeners.use(listeners.open([f"{former}:0"]))
    port = listeners.bound[0].sock.getsockname()[1]
    opened = listeners.open([f"{new}:{port}"])
    loopback = "::1" if ":" in former else "127.0.0.1"

    def is_accepted_by(bound: BoundSocket) -> bool:
        bound.sock.settimeout(5)
        with socket.create_connection((loopback, port), timeout=5) as client:
            accepted, name = bound.sock.accept()
            accepted.close()
            return bool(name == client.getsockname())

    def others_are_refused() -> None:
        with pytest.raises(sockets.ListenError, match="another program listens there"):
            sockets.bind(f"{new}:{port}")

    assert is_accepted_by(listeners.bound[0])
    others_are_refused()
    opened[0].sock.listen()
    others_are_refused()
    listeners.use(opened)
    listeners.close_retired()
    assert listeners.addresses == [f"{new}:{port}"]
    assert is_accepted_by(opened[-1])
    others_are_refused()
    listeners.close()


@linux_only
def test_one_address_stays_when_all_of_its_port_are_opened_and_is_there_to_go_back_to() -> None:
    """No client that waits in its queue is lost, and none sees that there are two."""
    store = Store()
    listeners = Listeners([], store)
    listeners.use(listeners.open(["127.0.0.1:0"]))
    [narrow] = listeners.bound
    port = narrow.sock.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        listeners.use(listeners.open([f"0.0.0.0:{port}"]))
        listeners.close_retired()
        assert narrow in listeners.bound
        assert listeners.addresses == [f"0.0.0.0:{port}"]
        assert listeners.open([f"0.0.0.0:{port}"]) == listeners.bound
        narrow.sock.settimeout(5)
        narrow.sock.accept()[0].close()
    assert listeners.open([f"127.0.0.1:{port}"]) == [narrow]
    listeners.use([narrow])
    listeners.close_retired()
    assert listeners.addresses == [f"127.0.0.1:{port}"]
    listeners.close()


@linux_only
def test_a_kept_socket_does_not_stand_in_the_way_of_a_wider_address() -> None:
    """The setting became 0.0.0.0 while it was down, and systemd still listens on 127.0.0.1."""
    former = kept("127.0.0.1:0")
    port = former.sock.getsockname()[1]
    with former.sock.dup():  # as systemd has it
        listeners = Listeners([former], Store())
        listeners.use(listeners.open([f"0.0.0.0:{port}"]))
        listeners.bound[0].sock.listen()
        assert listeners.addresses == [f"0.0.0.0:{port}"]
    listeners.close()


def test_a_kept_socket_is_known_by_another_spelling_of_its_address() -> None:
    """`localhost` in the setting became 127.0.0.1 while it was down."""
    former = kept("localhost:0")
    listeners = Listeners([former], Store())
    listeners.use(listeners.open(["127.0.0.1:0"]))
    assert listeners.bound[0].sock is former.sock
    listeners.close()


@linux_only
def test_another_program_on_the_port_is_not_taken_for_ours() -> None:
    """A socket of ours on the same port does not hide that another program has the address."""
    listeners = Listeners([], Store())
    listeners.use(listeners.open(["127.0.0.1:0"]))
    port = listeners.bound[0].sock.getsockname()[1]
    with (
        socket.create_server(("127.0.0.2", port)),
        pytest.raises(sockets.ListenError, match="another program listens there"),
    ):
        listeners.open([f"0.0.0.0:{port}"])
    assert listeners.bound[0].sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    listeners.close()


def test_another_spelling_of_an_address_is_the_same_socket() -> None:
    """`localhost` and 127.0.0.1 are one address, and two free ports are two sockets."""
    listeners = Listeners([], Store())
    listeners.use(listeners.open(["127.0.0.1:0", "127.0.0.1:0"]))
    first, second = listeners.bound
    assert first.address != second.address
    assert listeners.open(["localhost:0", "127.0.0.1:0"]) == [first, second]
    listeners.close()


def test_one_that_only_just_retired_is_taken_back() -> None:
    """An owner who changes the address back is not told that another program is there."""
    listeners = Listeners([], Store())
    listeners.use(listeners.open(["127.0.0.1:0"]))
    [first] = listeners.bound
    listeners.use(listeners.open(["[::1]:0"]))
    again = listeners.open([first.address])
    assert again == [first]
    listeners.discard(again)  # in vain: the draining worker still accepts from it
    assert first.sock.fileno() >= 0
    listeners.use(listeners.open([first.address]))
    listeners.close_retired()
    assert listeners.bound == [first]
    assert first.sock.fileno() >= 0
    listeners.close()
