"""A plain POST is recognised, and everything recognised is read alike by two parsers of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import httptools
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion11
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.plain_post import MAX_FIELDS, MAX_HEAD_BYTES, read_head, split_post

START = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: 127.0.0.1:8433\r\n"
LENGTH = b"Content-Length: 2\r\n"
PLAIN = START + HOST + LENGTH + b"\r\n{}"


class Read(NamedTuple):
    """A request, as one of the three reads it."""

    method: str
    path: str
    fields: list[tuple[str, str]]
    body: bytes


def read(data: bytes) -> Read | None:
    """As it is read here; None where it is declined."""
    post = split_post(data)
    head = None if post is None else read_head(bytes(post.head))
    if post is None or head is None:
        return None
    assert bytes(post.head) + post.body == data
    return Read("POST", head.path, list(head.fields.items()), post.body)


def field(line: bytes) -> bytes:
    """A plain request with one more line, before its length."""
    return START + HOST + line + b"\r\n" + LENGTH + b"\r\n{}"


# --- what is recognised ---------------------------------------------------------------------------

RECOGNISED = {
    "the plainest": PLAIN,
    "its length first": START + LENGTH + HOST + b"\r\n{}",
    "no body": START + HOST + b"Content-Length: 0\r\n\r\n",
    "a body of lines": START + HOST + b"Content-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n",
    "lower case": START + b"host: a\r\ncontent-length: 2\r\n\r\n{}",
    "upper case": START + b"HOST: a\r\nCONTENT-Length: 2\r\n\r\n{}",
    "zeros before the length": START + HOST + b"Content-Length: 0000002\r\n\r\n{}",
    "a query": START.replace(b" HTTP", b"?a=b&c HTTP") + HOST + LENGTH + b"\r\n{}",
    "an odd path": START.replace(b"/v1", b'//v1/../%00"<>\\^`{|}#') + HOST + LENGTH + b"\r\n{}",
    "no value": field(b"X:"),
    "blanks around a value": field(b"X: \t y \t "),
    "a tab in a value": field(b"X: y\tz"),
    "no blank behind the colon": field(b"X:y"),
    "colons in a value": field(b"X: y: z"),
    "every character of a name": field(b"!#$%&'*+.^_`|~-09azAZ: y"),
    "keep-alive": field(b"Connection: keep-alive"),
    "Keep-Alive": field(b"connection:Keep-Alive"),
    "the most fields": field(b"\r\n".join(b"X%d: y" % n for n in range(MAX_FIELDS - 2))),
}


@pytest.mark.parametrize("data", RECOGNISED.values(), ids=RECOGNISED)
def test_plain_requests_are_recognised(data: bytes, parsers: Parsers) -> None:
    """What common clients send is, and so is what only looks odd."""
    found = read(data)
    assert found is not None
    parsers.agree(data, found)


def test_names_are_in_lower_case_and_values_have_no_blanks_around_them() -> None:
    """That is how fields are looked up; a blank inside a value stays."""
    found = read(field(b"X-Name: \t a \t b\t"))
    assert found is not None
    assert found.fields[1] == ("x-name", "a \t b")


# --- what is declined -----------------------------------------------------------------------------

DECLINED = {
    "nothing": b"",
    "only the end of a head": b"\r\n\r\n",
    "a body that is still to come": PLAIN[:-1],
    "a head that is still to come": PLAIN.partition(b"\r\n\r\n")[0],
    "a byte behind the body": PLAIN + b"x",
    "a line end behind the body": PLAIN + b"\r\n",
    "a second request behind it": PLAIN + PLAIN,
    "a line end before it": b"\r\n" + PLAIN,
    "a GET": PLAIN.replace(b"POST", b"GET"),
    "a method in lower case": PLAIN.replace(b"POST", b"post"),
    "another method": PLAIN.replace(b"POST", b"PUT"),
    "a longer method": PLAIN.replace(b"POST", b"XPOST"),
    "HTTP/1.0": PLAIN.replace(b"/1.1", b"/1.0"),
    "HTTP/2.0": PLAIN.replace(b"/1.1", b"/2.0"),
    "HTTP/1.10": PLAIN.replace(b"/1.1", b"/1.10"),
    "http/1.1": PLAIN.replace(b"HTTP", b"http"),
    "no version": PLAIN.replace(b" HTTP/1.1", b""),
    "two blanks in its first line": PLAIN.replace(b" HTTP", b"  HTTP"),
    "a tab in its first line": PLAIN.replace(b"POST ", b"POST\t"),
    "a blank behind its first line": PLAIN.replace(b"/1.1\r", b"/1.1 \r"),
    "an absolute target": PLAIN.replace(b" /v1", b" http://127.0.0.1/v1"),
    "a target that is a host": PLAIN.replace(b" /v1/chat/completions", b" 127.0.0.1:80"),
    "a target that is a star": PLAIN.replace(b" /v1/chat/completions", b" *"),
    "a blank in the target": PLAIN.replace(b"/v1", b"/v 1"),
    "a byte above ASCII in the target": PLAIN.replace(b"/v1", b"/\xe4"),
    "a DEL in the target": PLAIN.replace(b"/v1", b"/\x7f"),
    "no length": START + HOST + b"\r\n{}",
    "two lengths": field(b"Content-Length: 2"),
    "two lengths that differ": START + HOST + LENGTH + b"Content-Length: 44\r\n\r\n{}",
    "two lengths, in two cases": field(b"CONTENT-LENGTH: 2"),
    "a length in another field first": field(b"X-Length: 2"),
    "no blank before the length": PLAIN.replace(b"Length: ", b"Length:"),
    "a tab before the length": PLAIN.replace(b"Length: ", b"Length:\t"),
    "two blanks before the length": PLAIN.replace(b"Length: ", b"Length:  "),
    "a blank behind the length": PLAIN.replace(b": 2\r", b": 2 \r"),
    "a length with a sign": PLAIN.replace(b": 2\r", b": +2\r"),
    "a length with a minus": PLAIN.replace(b": 2\r", b": -2\r"),
    "a length with an underscore": PLAIN.replace(b": 2\r", b": 0_2\r"),
    "a hexadecimal length": PLAIN.replace(b": 2\r", b": 0x2\r"),
    "a length with a point": PLAIN.replace(b": 2\r", b": 2.0\r"),
    "a list of lengths": PLAIN.replace(b": 2\r", b": 2, 2\r"),
    "no digits": PLAIN.replace(b": 2\r", b": \r"),
    "Arabic digits": PLAIN.replace(b": 2\r", b": \xd9\xa2\r"),
    "a superscript": PLAIN.replace(b": 2\r", b": \xb2\r"),
    "too many digits": PLAIN.replace(b": 2\r", b": " + b"0" * 7 + b"2\r"),
    "a length that ends in a bare line feed": PLAIN.replace(b": 2\r\n", b": 2\n"),
    "an upper-case length": PLAIN.replace(b"Content-Length", b"CONTENT-LENGTH"),
    "chunks": START + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a length and chunks": field(b"Transfer-Encoding: chunked"),
    "a length and chunks, in capitals": field(b"TRANSFER-ENCODING: CHUNKED"),
    "another coding": field(b"Transfer-Encoding: identity"),
    "a compressed body": field(b"Content-Encoding: gzip"),
    "an expectation": field(b"Expect: 100-continue"),
    "another protocol": field(b"Upgrade: websocket"),
    "another version of it": field(b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    "trailers": field(b"Trailer: x"),
    "codings of a transfer": field(b"TE: trailers"),
    "a page": field(b"Origin: http://127.0.0.1:8433"),
    "what a browser says": field(b"Sec-Fetch-Site: same-origin"),
    "what a browser says, in capitals": field(b"SEC-WHATEVER: x"),
    "the end of the connection": field(b"Connection: close"),
    "another connection": field(b"Connection: keep-alive, Upgrade"),
    "a connection that is not said": field(b"Connection:"),
    "a proxy's connection": field(b"Proxy-Connection: keep-alive"),
    "a time to live": field(b"Keep-Alive: timeout=5"),
    "no host": START + LENGTH + b"\r\n{}",
    "two hosts": field(b"Host: a"),
    "a field twice": field(b"X: y\r\nx: y"),
    "a blank before the colon": field(b"X : y"),
    "a tab before the colon": field(b"X\t: y"),
    "a tab in a name": field(b"X\tY: z"),
    "a blank in a name": field(b"X Y: z"),
    "a folded line": field(b"X: y\r\n z"),
    "a line folded with a tab": field(b"X: y\r\n\tz"),
    "a folded length": PLAIN.replace(b"Length: 2", b"Length: \r\n 2"),
    "a blank before the first name": START + b" " + HOST + LENGTH + b"\r\n{}",
    "no name": field(b": y"),
    "no colon": field(b"X"),
    "a bare line feed": field(b"X: y\nZ: z"),
    "a bare carriage return": field(b"X: y\rZ: z"),
    "two carriage returns": field(b"X: y\r"),
    "a head that ends in bare line feeds": PLAIN.replace(b"\r\n", b"\n"),
    "a NUL in a value": field(b"X: \x00"),
    "a NUL in a name": field(b"X\x00: y"),
    "a NUL in the target": PLAIN.replace(b"/v1", b"/\x00"),
    "a DEL in a value": field(b"X: \x7f"),
    "a form feed in a value": field(b"X: \x0c"),
    "a vertical tab before a coding": field(b"Transfer-Encoding: \x0bchunked"),
    "a byte above ASCII in a value": field(b"X: \xe4"),
    "a byte above ASCII in a name": field(b"\xe4: y"),
    "too many fields": field(b"\r\n".join(b"X%d: y" % n for n in range(MAX_FIELDS - 1))),
    "too large a head": field(b"X: " + b"y" * MAX_HEAD_BYTES),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("data", DECLINED.values(), ids=DECLINED)
def test_what_is_not_plain_is_declined(data: bytes) -> None:
    """It is not there whole, parsers disagree about it, or it asks for more than an answer."""
    assert read(data) is None


def test_a_head_of_the_most_bytes_is_recognised(parsers: Parsers) -> None:
    """And one byte more is not, however it is divided into fields."""
    most = field(b"X: " + b"y" * (MAX_HEAD_BYTES - len(field(b"X: ")) + len(b"{}")))
    assert len(most) == MAX_HEAD_BYTES + len(b"{}")
    found = read(most)
    assert found is not None
    parsers.agree(most, found)
    assert read(most.replace(b"X: ", b"X: y")) is None


# --- two parsers ----------------------------------------------------------------------------------


class _Heard:
    """What httptools tells."""

    def __init__(self) -> None:
        self.url = self.body = b""
        self.fields: list[tuple[str, str]] = []
        self.requests = 0

    def on_url(self, part: bytes) -> None:
        self.url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode().lower(), value.decode().strip(" \t")))

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.requests += 1


class Parsers:
    """The one that serves, which is aiohttp's in C, and httptools."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def agree(self, data: bytes, found: Read) -> None:
        """Fail where one of them reads `data` otherwise, or leaves something of it over."""
        assert self._aiohttp(data) == found
        assert self._httptools(data) == found

    def _aiohttp(self, data: bytes) -> Read | str:
        parser = HttpRequestParser(
            BaseProtocol(self._loop), self._loop, 2**16, auto_decompress=False
        )
        try:
            requests, upgraded, left = parser.feed_data(data)
        except HttpProcessingError as error:
            return str(error)
        if len(requests) != 1 or upgraded or left:
            return f"{len(requests)} requests, and {left!r}"
        ((said, body),) = requests
        if not body.is_eof() or said.should_close or said.chunked or said.upgrade:
            return f"{said}"
        assert said.version == HttpVersion11
        fields = [(name.lower(), value) for name, value in said.headers.items()]
        return Read(said.method, said.path, fields, body.read_nowait())

    def _httptools(self, data: bytes) -> Read | str:
        heard = _Heard()
        parser = httptools.HttpRequestParser(heard)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            return str(error)
        if heard.requests != 1 or not parser.should_keep_alive():
            return f"{heard.requests} requests"
        assert parser.get_http_version() == "1.1"
        return Read(parser.get_method().decode(), heard.url.decode(), heard.fields, heard.body)


@pytest.fixture(scope="module")
def parsers() -> Iterator[Parsers]:
    """Both of them."""
    loop = asyncio.new_event_loop()
    yield Parsers(loop)
    loop.close()


def test_every_byte_at_every_place_of_a_head(parsers: Parsers) -> None:
    """Whichever byte stands where another stood, what is recognised is read alike."""
    whole = PLAIN.replace(b"\r\n\r\n", b"\r\nX:\ty\r\n\r\n")
    recognised = 0
    for at in range(len(whole)):
        for byte in range(256):
            data = whole[:at] + bytes([byte]) + whole[at + 1 :]
            if found := read(data):
                recognised += 1
                parsers.agree(data, found)
    assert recognised > 1_000


def test_whatever_is_cut_out_or_doubled(parsers: Parsers) -> None:
    """A piece that is lost or comes twice makes no request that is read in two ways."""
    whole = PLAIN.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n")
    recognised = 0
    for start in range(len(whole)):
        for end in range(start + 1, len(whole) + 1):
            piece = whole[start:end]
            for data in (whole[:start] + whole[end:], whole[:end] + piece + whole[end:]):
                if found := read(data):
                    recognised += 1
                    parsers.agree(data, found)
    assert recognised > 500


def mostly(
    usual: st.SearchStrategy[bytes], odd: st.SearchStrategy[bytes]
) -> st.SearchStrategy[bytes]:
    """Odd once in a while, so that many of the requests are plain."""
    return st.integers(0, 9).flatmap(lambda chance: usual if chance else odd)


TOKENS = st.text("!#$%&'*+.^_`|~-09azAZ", min_size=1, max_size=9).map(str.encode)
NAMES = mostly(
    TOKENS | st.sampled_from([b"Accept", b"Authorization", b"Content-Type"]),
    st.sampled_from([b"Host", b"Connection", b"Content-Length", b"Transfer-Encoding", b"TE", b""])
    | st.binary(max_size=3),
)
VALUES = mostly(
    st.text(st.characters(codec="ascii", min_codepoint=32), max_size=9).map(str.encode),
    st.sampled_from([b"keep-alive", b"chunked", b"2", b"ength: 2", b"y\r\n z", b"y\nX: z", b"y\rz"])
    | st.binary(max_size=4),
)
COLONS = mostly(st.sampled_from([b": ", b":", b":\t"]), st.sampled_from([b" : ", b"", b"\n:"]))
LINES = st.tuples(NAMES, COLONS, VALUES).map(b"".join)
TARGETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=9)
STARTS = mostly(
    TARGETS.map(lambda target: f"POST /{target} HTTP/1.1".encode()),
    st.sampled_from([b"POST * HTTP/1.1", b"GET / HTTP/1.1", b"POST / HTTP/1.0", b""]),
)
LENGTHS = mostly(
    st.sampled_from([b"Content-Length: %d", b"content-length: %d", b"Content-Length: %03d"]),
    st.sampled_from([b"Content-Length: +%d", b"Content-Length:%d", b"Content-Length: 1%d", b"X-"]),
)
ENDS = mostly(st.just(b"\r\n"), st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"]))
BEHIND = mostly(st.just(b""), st.sampled_from([b"x", b"\r\n", PLAIN]))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One that is plain, or nearly."""
    body = draw(st.binary(max_size=12))
    length = draw(LENGTHS)
    lines = [*draw(st.lists(LINES, max_size=4)), length % len(body) if b"%" in length else length]
    lines = [draw(STARTS), HOST.rstrip(), *draw(st.permutations(lines)), b""]
    return b"".join(line + draw(ENDS) for line in lines) + body + draw(BEHIND)


@given(requests())
def test_what_is_recognised_is_read_alike(parsers: Parsers, data: bytes) -> None:
    """The same method, target, fields and body, and nothing is left over, for any parser."""
    if found := read(data):
        parsers.agree(data, found)


# --- what is remembered ---------------------------------------------------------------------------


def test_heads_that_differ_only_in_their_length_have_one_key() -> None:
    """So what was found in one of them holds for the other."""
    keys = {
        split_post(START + HOST + b"Content-Length: %d\r\n\r\n" % size + bytes(size)).key  # type: ignore[union-attr]
        for size in (0, 9, 10, 1_000)
    }
    assert len(keys) == 1


@given(requests(), st.integers(0, 9_999))
def test_another_length_changes_no_verdict(data: bytes, size: int) -> None:
    """A head that is remembered as plain is plain with any length."""
    post = split_post(data)
    if post is None:
        return
    at = data.index(b"ength: ") + 7
    other = data[:at] + b"%d" % size + data[data.index(b"\r", at) : len(post.head)] + bytes(size)
    again = split_post(other)
    assert again is not None
    assert again.key == post.key
    assert (read_head(bytes(again.head)) is None) == (read_head(bytes(post.head)) is None)


@pytest.mark.parametrize("change", [b"X: z", b"x: y", b"X:y", b"X: y ", b"Y: y", b"X: y\r\nY: z"])
def test_another_field_makes_another_key(change: bytes) -> None:
    """A key in a header, above all: nothing of what a head says is left out."""
    one, other = split_post(field(b"X: y")), split_post(field(change))
    assert one is not None
    assert other is not None
    assert one.key != other.key
