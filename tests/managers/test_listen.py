"""Addresses, real sockets, and those that systemd passes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.managers import sockets
from tidegate.managers.sockets import BadAddress, ListenError


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:8433", (socket.AF_INET, "127.0.0.1", 8433)),
        ("localhost:0", (socket.AF_INET, "127.0.0.1", 0)),
        ("[::1]:8433", (socket.AF_INET6, "::1", 8433)),
        ("unix:/run/x.sock", (socket.AF_UNIX, "/run/x.sock", 0)),
    ],
)
def test_addresses(address: str, parsed: tuple[socket.AddressFamily, str, int]) -> None:
    """What the setting may say, and what it means."""
    assert sockets.parse(address) == parsed


@pytest.mark.parametrize(
    "address",
    ["", "8433", ":8433", "::1:8433", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "host:1",
     "[127.0.0.1]:1", "[::1]", "unix:relative", "127.0.0.1:٣", "[::1]x:1"],
)  # fmt: skip
def test_what_is_no_address_is_named(address: str) -> None:
    """The error repeats the address as it was written."""
    with pytest.raises(BadAddress) as raised:
        sockets.bind(address)
    assert f'"{address}"' in str(raised.value)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_port_0_is_resolved(address: str) -> None:
    """The bound address names the port that the system chose."""
    try:
        bound = sockets.bind(address)
    except ListenError as error:
        pytest.skip(f"no IPv6 here: {error}")
    host, _, port = bound.address.rpartition(":")
    assert host == address.rpartition(":")[0]
    with socket.create_connection((host.strip("[]"), int(port))):
        pass
    bound.close()


def test_both_families_share_a_port() -> None:
    """ "[::]" listens for IPv6 alone, so "0.0.0.0" of the same port can stand beside it."""
    four = sockets.bind("0.0.0.0:0")
    try:
        six = sockets.bind(f"[::]:{four.address.rpartition(':')[2]}")
    except ListenError as error:
        pytest.skip(f"no IPv6 here: {error}")
    finally:
        four.close()
    six.close()


@pytest.mark.parametrize(
    ("address", "hint"),
    [("192.0.2.1:8433", "does not have that address"), ("unix:/nowhere/x", "does not exist")],
)
def test_error_says_what_to_do(address: str, hint: str) -> None:
    """Address and hint are both in the text."""
    with pytest.raises(ListenError, match=hint) as raised:
        sockets.bind(address)
    assert address in str(raised.value)
    assert not isinstance(raised.value, BadAddress)


def test_unix_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    """A left-over file gives way; a socket that a process serves does not; close removes it."""
    path = tmp_path / "door"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bound = sockets.bind(f"unix:{path}")
    assert path.stat().st_mode & 0o007 == 0
    with pytest.raises(ListenError, match="another program listens"):
        sockets.bind(f"unix:{path}")
    bound.close()
    assert not path.exists()


def test_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """What is no socket is never removed."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError):
        sockets.bind(f"unix:{path}")
    assert path.read_text() == "data"


ADOPT = """
import os, sys
from tidegate.managers import sockets as listen
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    print([b.address for b in listen.adopt_passed(os.environ, os.getpid())])
except listen.ListenError as error:
    print("refused", error)
print([name for name in os.environ if name.startswith("LISTEN")])
"""


def adopted(sock: socket.socket) -> str:
    """What a process says that was given `sock` as systemd would give it."""
    code = f"import os; os.dup2({sock.fileno()}, 3)\n{ADOPT}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
        pass_fds=(sock.fileno(),),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_passed_socket_is_adopted() -> None:
    """LISTEN_FDS meant for us is taken over, and the variables are used up."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        assert adopted(sock) == f"['{address}']\n[]\n"


def test_passed_socket_that_does_not_listen_is_refused() -> None:
    """The error names the descriptor and the name that systemd gave it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert adopted(sock).startswith("refused descriptor 3 (web)")


def test_sockets_meant_for_another_process_are_left() -> None:
    """LISTEN_PID of another process: nothing is adopted, and no process after us is misled."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
    assert sockets.adopt_passed(environ, os.getpid()) == []
    assert environ == {}
