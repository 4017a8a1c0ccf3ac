"""The process that sends one message and ends: `python -m tidegate.watchdog.notify.send`.

What to send stands on standard input, what became of it goes to standard output, each as JSON. It
ends by itself within `LIMIT_S`, whatever the receiver does and whether or not the watchdog lives.
No text that it writes has a part of the address, and it writes nothing else: a traceback might.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence

import msgspec

from tidegate.core.decoding import Undecodable
from tidegate.core.notices.address import (
    APPRISE,
    NTFY,
    NoticeAddress,
    parse_address,
    secrets_in,
    words_in,
)
from tidegate.core.notices.notice import (
    MAX_PAYLOAD_BYTES,
    OVER,
    TEST,
    Notice,
    NoticeMessage,
    Outcome,
    decode_message,
    text_of,
    title_of,
    webhook_of,
    worst_severity,
)
from tidegate.core.secret import Secret, hide_keys
from tidegate.core.text import visible
from tidegate.machine.heap import volunteer_for_oom

LIMIT_S = 20
ANSWER_LIMIT_S = 10.0  # to connect, and between two pieces of the answer
MAX_ANSWER_BYTES = 2000
MAX_SHOWN = 200  # characters of an answer
# By these a receiver says that the message itself is wrong: it would say so again.
NEVER = {400, 406, 411, 413, 414, 415, 422, 431}
_PRIORITIES = {"note": "2", "warning": "3", "error": "4"}  # of ntfy: low, default, high
_TAGS = {"note": "information_source", "warning": "warning", "error": "rotating_light"}
_APPRISE_TYPES = {"note": "info", "warning": "warning", "error": "failure"}


def main() -> int:
    """Send what standard input says; the exit code is 0 when what became of it is written."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGTERM, signal.SIGINT})
    signal.alarm(LIMIT_S)
    volunteer_for_oom()  # a message is worth less than an answer
    try:
        message = decode_message(sys.stdin.buffer.read(MAX_PAYLOAD_BYTES))
    except Undecodable:
        sys.stderr.write("started by the watchdog, to send one message\n")
        return os.EX_USAGE
    sys.stdout.buffer.write(msgspec.json.encode(send(message)))
    sys.stdout.buffer.flush()
    return os.EX_OK


def send(message: NoticeMessage) -> Outcome:
    """Send it, and say what became of it. Raises nothing."""
    secret = Secret(*secrets_in(message.url), *words_in(message.url))
    try:
        outcome = _send(parse_address(message.url), message)
    except Exception as error:
        outcome = Outcome(ok=False, answer=_reason(error))
    shown = hide_keys(secret.hide(visible(outcome.answer)))
    return msgspec.structs.replace(outcome, answer=shown[:MAX_SHOWN])


def _send(address: NoticeAddress, message: NoticeMessage) -> Outcome:
    if address.kind == APPRISE:
        return _by_apprise(message)
    if address.kind == NTFY:
        body, headers = _for_ntfy(message)
    else:
        body = msgspec.json.encode(webhook_of(message, socket.gethostname(), _when))
        headers = {"Content-Type": "application/json"}
    if address.user:
        headers["Authorization"] = _authorization(address)
    headers["User-Agent"] = f"tidegate/{message.version}"
    return _post(address, body, headers)


def _post(address: NoticeAddress, body: bytes, headers: dict[str, str]) -> Outcome:
    """Ask once. A redirect is not followed: it would carry the message to another place."""
    url = address.url
    connection = (
        http.client.HTTPSConnection(
            url.host, url.port, timeout=ANSWER_LIMIT_S, context=ssl.create_default_context()
        )
        if url.is_tls
        else http.client.HTTPConnection(url.host, url.port, timeout=ANSWER_LIMIT_S)
    )
    try:
        connection.request("POST", address.target, body, {**headers, "Host": url.authority})
        response = connection.getresponse()
        said = response.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
    finally:
        connection.close()
    status = response.status
    return Outcome(
        ok=200 <= status < 300,
        answer=_answer(status, said),
        refused=status in NEVER,
        retry_after_s=_seconds(response.getheader("Retry-After")),
    )


def _answer(status: int, said: str) -> str:
    said = " ".join(said.split())
    if 300 <= status < 400:
        return f"it answered {status}, which leads elsewhere; set the address that it leads to"
    return f"it answered {status}" + (f": {said}" if said else "")


def _for_ntfy(message: NoticeMessage) -> tuple[bytes, dict[str, str]]:
    """Make the body and the headers that ntfy knows, see docs.ntfy.sh/publish."""
    notices, severity = message.notices, worst_severity(message.notices)
    is_over = {each.state for each in notices} <= {OVER, TEST}
    headers = {
        "Title": _header(title_of(notices, socket.gethostname())),
        "Priority": _PRIORITIES["warning" if is_over else severity],
        "Tags": "white_check_mark" if is_over else _TAGS[severity],
        "Content-Type": "text/plain; charset=utf-8",
    }
    return _text(message, notices).encode(), headers


def _by_apprise(message: NoticeMessage) -> Outcome:
    """Hand it to Apprise, which knows a hundred services. Its own log may name the address."""
    try:
        import apprise  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError:
        return Outcome(
            ok=False,
            answer="this kind of address needs Apprise, which is not installed: "
            "pip install 'tidegate[notify]'",
        )
    receivers = apprise.Apprise()
    if not receivers.add(message.url):
        return Outcome(ok=False, answer="Apprise does not know this kind of address")
    is_sent = receivers.notify(
        title=title_of(message.notices, socket.gethostname()),
        body=_text(message, message.notices),
        notify_type=_APPRISE_TYPES[worst_severity(message.notices)],
    )
    if is_sent:
        return Outcome(ok=True, answer="Apprise has delivered it")
    return Outcome(ok=False, answer="Apprise could not deliver it; `apprise -vv` says why")


def _text(message: NoticeMessage, notices: Sequence[Notice]) -> str:
    return text_of(notices, message.left_out, message.now, _when)


def _when(at: float) -> str:
    return time.strftime("%H:%M", time.localtime(at))


def _authorization(address: NoticeAddress) -> str:
    """Write user and password, or a token alone, as the header has it."""
    if ":" in address.user:
        return f"Basic {base64.b64encode(address.user.encode()).decode()}"
    return f"Bearer {address.user}"


def _header(text: str) -> str:
    """Write a text as a header's value; a host's name may have other letters."""
    if text.isascii():
        return text
    return f"=?UTF-8?B?{base64.b64encode(text.encode()).decode()}?="


def _seconds(said: str | None) -> float | None:
    return float(said) if said is not None and re.fullmatch(r"\d{1,6}", said) else None


def _reason(error: Exception) -> str:
    """Say why it could not be sent, without what a library makes of the address."""
    match error:
        case TimeoutError():
            return f"it did not answer within {ANSWER_LIMIT_S:g} s"
        case http.client.RemoteDisconnected():
            return "it hung up without an answer"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError() if error.reason == "WRONG_VERSION_NUMBER":
            return "it speaks http there and no https: ntfy://…?secure=false, or http://…"
        case socket.gaierror():
            return f"its host cannot be found: {error.strerror}"
        case OSError():
            return f"it cannot be reached: {error.strerror or type(error).__name__}"
        case http.client.HTTPException():
            return f"it does not speak HTTP: {type(error).__name__}"
        case ValueError():
            return f"its address cannot be used: {error}"
        case _:
            return f"a fault of tidegate's own: {type(error).__name__}"


if __name__ == "__main__":
    sys.exit(main())
