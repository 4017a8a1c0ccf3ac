"""The process that sends a message: what each kind of receiver gets, and how failures are told."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trustme

from fakes.receiver import Receiver, dead_port, receiving
from tidegate.core.notices.notice import OPEN, OVER, Notice, NoticeMessage, Outcome, decode_outcome
from tidegate.watchdog.notify import send as sending
from tidegate.watchdog.notify.sender import SEND_COMMAND

pytestmark = pytest.mark.processes
NOW = time.time()
TOKEN = "tk_CANARY9d1f7a3c5e8b"
BROKEN = Notice(
    id="disk-full", state=OPEN, severity="error", cause="the disk is full", fix="make room",
    since=NOW,
)  # fmt: skip
OVER_NOW = Notice(
    id="disk-full", state=OVER, severity="error", cause="the disk is full", since=NOW - 60,
    until=NOW,
)  # fmt: skip


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def run(url: str, *notices: Notice, **environ: str) -> Outcome:
    """The real process, as the watchdog starts it; nothing is written but its outcome."""
    message = NoticeMessage(url=url, notices=list(notices) or [BROKEN], now=NOW, version="1.0")
    done = subprocess.run(
        SEND_COMMAND,
        input=msgspec.json.encode(message),
        capture_output=True,
        timeout=30,
        check=True,
        env={"PYTHONDONTWRITEBYTECODE": "1"} | environ,
    )
    assert done.stderr == b""
    return decode_outcome(done.stdout)


def test_a_webhook_gets_json(receiver: Receiver) -> None:
    """At the path and with the query that its address has."""
    outcome = run(f"{receiver.url}/hook/x?to=me")
    assert outcome == Outcome(ok=True, answer="it answered 200: ok")
    [heard] = receiver.heard
    assert (heard.method, heard.target) == ("POST", "/hook/x?to=me")
    assert heard.headers["Content-Type"] == "application/json"
    assert heard.headers["Host"] == f"127.0.0.1:{receiver.port}"
    assert heard.headers["User-Agent"] == "tidegate/1.0"
    assert "Authorization" not in heard.headers
    assert receiver.told == [("disk-full", "open")]


def test_ntfy_gets_its_headers(receiver: Receiver) -> None:
    """Title, priority and tag by severity, the text in UTF-8 as the body."""
    address = f"ntfy://{TOKEN}@127.0.0.1:{receiver.port}/topic?secure=false"
    assert run(address).ok
    assert run(address, OVER_NOW).ok
    first, second = receiver.heard
    assert (first.method, first.target) == ("POST", "/topic")
    assert first.headers["Title"].endswith(": error")
    assert (first.headers["Priority"], first.headers["Tags"]) == ("4", "rotating_light")
    assert first.headers["Authorization"] == f"Bearer {TOKEN}"
    assert first.body.decode() == "the disk is full\n→ make room"
    assert (second.headers["Priority"], second.headers["Tags"]) == ("3", "white_check_mark")
    assert second.headers["Title"].endswith(": over")


def test_a_user_and_a_password_are_basic(receiver: Receiver) -> None:
    """As ntfy and gates in front of webhooks ask for them."""
    assert run(f"http://me:p%40ss@127.0.0.1:{receiver.port}/").ok
    basic = base64.b64encode(b"me:p@ss").decode()
    assert receiver.heard[0].headers["Authorization"] == f"Basic {basic}"


@pytest.mark.parametrize(
    ("status", "says", "refused"),
    [
        (401, "it answered 401: ok", False),
        (404, "it answered 404", False),
        (413, "it answered 413", True),
        (503, "it answered 503", False),
    ],
)
def test_what_is_not_taken_is_told(
    receiver: Receiver, status: int, says: str, refused: bool
) -> None:
    """With the receiver's own words, and whether another try can help."""
    receiver.status = status
    outcome = run(receiver.url)
    assert not outcome.ok
    assert outcome.refused is refused
    assert outcome.answer.startswith(says)


def test_when_to_come_again_is_heard(receiver: Receiver) -> None:
    """In seconds; a date is not looked at."""
    receiver.status, receiver.headers = 429, {"Retry-After": "77"}
    assert run(receiver.url).retry_after_s == 77
    receiver.headers = {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}
    assert run(receiver.url).retry_after_s is None


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    """It would carry the message, and the token, to another place."""
    receiver.status, receiver.headers = 307, {"Location": f"{receiver.url}/other"}
    outcome = run(receiver.url)
    assert not outcome.ok
    assert "leads elsewhere" in outcome.answer
    assert len(receiver.heard) == 1


def test_no_answer_has_a_part_of_the_address(receiver: Receiver) -> None:
    """Though the receiver repeats all that it was sent."""
    receiver.echoes = True
    url = f"http://me:{TOKEN}@127.0.0.1:{receiver.port}/hook/{TOKEN}/secret-word?key={TOKEN}"
    for status in (200, 500):
        receiver.status = status
        answer = run(url).answer
        assert f"it answered {status}" in answer
        assert "CANARY" not in answer
        assert "secret-word" not in answer
        assert base64.b64encode(f"me:{TOKEN}".encode()).decode() not in answer


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:{dead}/CANARY", "it cannot be reached: Connection refused"),
        ("http://no-such-host.invalid/CANARY", "its host cannot be found"),
        ("https://127.0.0.1:{port}/CANARY", "it speaks http there and no https: ntfy://…?secure="),
        ("ntfy://CANARY", "its address cannot be used"),
    ],
)
def test_what_cannot_be_reached_is_told(receiver: Receiver, url: str, says: str) -> None:
    """Why, and nothing of the path."""
    outcome = run(url.format(port=receiver.port, dead=dead_port()))
    assert not outcome.ok
    assert outcome.answer.startswith(says)
    assert "CANARY" not in outcome.answer


@pytest.mark.parametrize(
    ("said", "ok", "says"),
    [
        (b"", False, "it hung up without an answer"),
        (b"CANARY" * 1000 + b"\r\n\r\n", False, "it does not speak HTTP: BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, False, "it does not speak HTTP: LineTooLong"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 200, False, "it does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", False, "it does not"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", True, "it answered 200: ab"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"\x1b[31m\xff" * 100_000, True, "it answered 200: \\x1b"),
        (b"HTTP/1.1 204 No\r\n\r\n", True, "it answered 204"),
        (b"HTTP/1.1 999 ?\r\n\r\n", False, "it answered 999"),
    ],
)
def test_whatever_a_receiver_says_is_an_outcome(said: bytes, ok: bool, says: str) -> None:
    """A short one, in words that print."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=say, args=(server, said))
        thread.start()
        outcome = run(f"http://127.0.0.1:{server.getsockname()[1]}/CANARY")
        thread.join()
    assert outcome.ok is ok
    assert outcome.answer.startswith(says)
    assert len(outcome.answer) <= sending.MAX_SHOWN
    assert outcome.answer.isprintable()
    assert "CANARY" not in outcome.answer


def say(server: socket.socket, said: bytes) -> None:
    """To one client, once it has asked."""
    connection, _ = server.accept()
    with connection, suppress(OSError):
        connection.recv(65536)
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def test_a_certificate_is_looked_at(tmp_path: Path) -> None:
    """One that no authority of the system vouches for is refused; SSL_CERT_FILE names others."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with receiving(context) as receiver:
        url = f"https://127.0.0.1:{receiver.port}/"
        refused = run(url)
        assert "certificate is not trusted" in refused.answer
        assert run(url, SSL_CERT_FILE=str(tmp_path / "ca.pem")).ok


def test_without_apprise_it_says_how_to_get_it(tmp_path: Path) -> None:
    """The extra is named. Where it is installed, what cannot be imported stands before it."""
    (tmp_path / "apprise.py").write_text("raise ModuleNotFoundError(name='apprise')\n")
    outcome = run("tgram://CANARYbot/chat", PYTHONPATH=str(tmp_path))
    assert not outcome.ok
    assert "pip install 'tidegate[notify]'" in outcome.answer


def test_apprise_gets_what_it_knows(receiver: Receiver) -> None:
    """One of its hundred services, spoken for real; an address that it does not know is told."""
    pytest.importorskip("apprise")
    assert run(f"json://127.0.0.1:{receiver.port}/CANARYpath").ok
    assert receiver.heard[0].json["type"] == "failure"
    assert "make room" in receiver.heard[0].json["message"]
    receiver.status = 500
    failed = run(f"json://127.0.0.1:{receiver.port}/CANARYpath")
    assert not failed.ok
    assert "CANARY" not in failed.answer
    assert "does not know" in run("nosuchthing://CANARY").answer


def test_what_it_is_not_given_ends_it() -> None:
    """It is no command for people."""
    done = subprocess.run(SEND_COMMAND, input=b"hello", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (64, b"")


def test_it_ends_by_itself(receiver: Receiver) -> None:
    """Whatever the receiver does, and though no watchdog is left to end it."""
    receiver.is_silent = True
    code = (
        "import sys; from tidegate.watchdog.notify import send; send.LIMIT_S = 1; "
        "sys.exit(send.main())"
    )
    message = NoticeMessage(url=receiver.url, notices=[BROKEN], now=NOW, version="1.0")
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=msgspec.json.encode(message),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode < 0
    assert time.monotonic() - began_s < sending.ANSWER_LIMIT_S
