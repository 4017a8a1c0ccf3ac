"""Bodies that are wrong in every way: refused with a reason, whatever route they are sent to."""

from __future__ import annotations

import gzip
import zlib

import pytest

from hostile.conftest import Tried
from hostile.exchange import try_all, try_one, willing
from hostile.mutate import every_cut, mutants
from hostile.requests import BODIES, BODY_WORDS, CHAT, FORM, MULTIPART, lengthen, post, request

MUTANTS = 3_500
LIMITS = {"header_s": 0.5, "body_s": 0.5, "first_output_s": 3.0, "total_s": 20.0}
MIB = 1024 * 1024
PATHS = sorted({body.split(b" ")[1] for body in BODIES})


async def test_whatever_body_comes_is_answered_or_hung_up_on(
    rigs, raw_upstream, tried: Tried
) -> None:
    """No body makes the gateway fail, log an error, or hold anything afterwards."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    changed = mutants(BODIES, BODY_WORDS, "bodies", MUTANTS)
    # A body that is shorter than it says is a matter of time; half of them are looked at whole.
    inputs = [lengthen(each) if number % 4 else each for number, each in enumerate(changed)]
    tried(len(await try_all(rig, inputs)))


async def test_a_request_cut_at_every_byte(rigs, raw_upstream, tried: Tried) -> None:
    """Wherever its client goes, nothing of it is asked for and nothing of it stays."""
    upstream = await raw_upstream(willing)
    rig = await rigs(upstream, **LIMITS)
    *cut, _ = every_cut(CHAT)
    tried(len(await try_all(rig, cut)))
    assert not upstream.peers


ODD_JSON = {
    "nothing": b"",
    "blank": b" \r\n\t",
    "a number": b"1",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"model"',
    "two values": b'{"model":"m"}{"model":"m"}',
    "a deep list": b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a deep object": b'{"model":"m","x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "no end": b'{"model":"m","messages":[',
    "not UTF-8": b'{"model":"m\xff","messages":[]}',
    "UTF-16": '{"model":"m"}'.encode("utf-16"),
    "a mark before it": b'\xef\xbb\xbf{"model":"m","messages":[]}',
    "a NUL in a name": b'{"model":"m\\u0000","messages":[]}',
    "a NUL": b'{"model":"m"\x00}',
    "a lone surrogate for a name": b'{"model":"\\ud800","messages":[]}',
    "an empty name": b'{"model":"","messages":[]}',
    "a long name": b'{"model":"' + b"m" * 100_000 + b'","messages":[]}',
    "a name with lines": b'{"model":"m\\r\\nX: y","messages":[]}',
    "a name of a path": b'{"model":"../../etc/passwd","messages":[]}',
    "a name that is a number": b'{"model":1,"messages":[]}',
    "a name that is a list": b'{"model":["m"],"messages":[]}',
    "two names": b'{"model":"m","model":"n","messages":[]}',
    "a stream that is a word": b'{"model":"m","stream":"yes","messages":[]}',
    "a stream that is a number": b'{"model":"m","stream":1e400,"messages":[]}',
    "an endless number": b'{"model":"m","n":' + b"9" * 100_000 + b"}",
    "not a number": b'{"model":"m","n":NaN,"messages":[]}',
    "many members": b'{"model":"m",' + b",".join(b'"k%d":0' % n for n in range(20_000)) + b"}",
    "an id of lines": b'{"model":"m","previous_response_id":"a\\r\\nb","input":[]}',
    "a store that is none": b'{"model":"m","store":"x","background":[],"input":[]}',
}


@pytest.mark.parametrize("body", ODD_JSON.values(), ids=ODD_JSON)
async def test_odd_json_is_refused_or_passed_on_by_every_route(
    rigs, raw_upstream, tried: Tried, body: bytes
) -> None:
    """Each route says what is wrong with it, or lets its upstream judge; none of them fails."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    tried(len(await try_all(rig, [post(path, body) for path in PATHS])))


ODD_FORMS = {
    "no boundary": (b"Content-Type: multipart/form-data", FORM),
    "an empty boundary": (b"Content-Type: multipart/form-data; boundary=", FORM),
    "a long boundary": (b"Content-Type: multipart/form-data; boundary=" + b"x" * 4_000, FORM),
    "another boundary": (b"Content-Type: multipart/form-data; boundary=other", FORM),
    "no end": (MULTIPART, FORM[:-6]),
    "no fields": (MULTIPART, b"--edge--\r\n"),
    "nothing": (MULTIPART, b""),
    "only boundaries": (MULTIPART, b"--edge\r\n" * 20_000),
    "a long head": (MULTIPART, b"--edge\r\nX: " + b"y" * 100_000 + b"\r\n\r\n\r\n--edge--\r\n"),
    "many models": (
        MULTIPART,
        b"--edge\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n" * 5_000
        + b"--edge--\r\n",
    ),
    "a name with lines": (
        MULTIPART,
        b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\nX: y\r\n--edge--\r\n',
    ),
    "not UTF-8": (
        MULTIPART,
        b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\xfe\r\n--edge--\r\n',
    ),
}


@pytest.mark.parametrize(("kind", "body"), ODD_FORMS.values(), ids=ODD_FORMS)
async def test_odd_forms_are_refused_or_passed_on(
    rigs, raw_upstream, tried: Tried, kind: bytes, body: bytes
) -> None:
    """Where fields of a form cannot be found it is said, and their upstream is not asked."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    paths = (b"/v1/audio/transcriptions", b"/v1/images/edits", b"/v1/chat/completions")
    inputs = [request(b"POST " + path, kind, body=body) for path in paths]
    tried(len(await try_all(rig, inputs)))


def bomb(coding: bytes, content: bytes) -> bytes:
    """A request whose body is compressed."""
    return post(b"/v1/chat/completions", content, b"Content-Encoding: " + coding)


ZEROS = b'{"model":"m","messages":[{"role":"user","content":"' + b"0" * (4 * MIB) + b'"}]}'


async def test_bodies_that_grow_are_cut_at_the_limit(rigs, raw_upstream, tried: Tried) -> None:
    """However it is compressed, and however often, a body is never larger than max_body."""
    upstream = await raw_upstream(willing)
    rig = await rigs(upstream, **LIMITS, max_body_bytes=1 * MIB)
    packed = gzip.compress(ZEROS)
    inputs = [
        bomb(b"gzip", packed),
        bomb(b"gzip", gzip.compress(packed)),
        bomb(b"gzip, gzip", gzip.compress(packed)),
        bomb(b"deflate", zlib.compress(ZEROS)),
        bomb(b"gzip", packed[: len(packed) // 2]),
        bomb(b"gzip", packed + b"more"),
        bomb(b"gzip", packed[:-8] + bytes(8)),
        bomb(b"br", packed),
        bomb(b"zstd", packed),
        bomb(b"compress", packed),
        bomb(b"nonsense", packed),
        bomb(b"gzip", b""),
        bomb(b"identity", ZEROS),
        post(b"/v1/chat/completions", ZEROS),
    ]
    for one in await try_all(rig, inputs):
        assert [reply.status for reply in one.replies if reply.status < 400] == []
    assert not upstream.peers
    tried(len(inputs))


CHUNKS = {
    "a size that is none": b"g\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a signed size": b"+2\r\n{}\r\n0\r\n\r\n",
    "a prefixed size": b"0x2\r\n{}\r\n0\r\n\r\n",
    "an endless size": b"f" * 5_000 + b"\r\n{}",
    "a huge size": b"ffffffffffffffff\r\n{}",
    "a blank before": b" 2\r\n{}\r\n0\r\n\r\n",
    "a longer chunk": b"2\r\n{}}\r\n0\r\n\r\n",
    "a bare line feed": b"2\n{}\n0\n\n",
    "an endless extension": b"2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
    "a line feed in it": b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "an endless trailer": b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    "a trailer with a host": b"2\r\n{}\r\n0\r\nHost: evil\r\nContent-Length: 9\r\n\r\n",
    "ones": b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"model":"m"}') + b"0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
async def test_odd_chunks_are_refused_or_read_as_the_standard_says(
    rigs, raw_upstream, tried: Tried, chunks: bytes
) -> None:
    """What is wrong in the framing of a body is a 400 or the end, and no second request."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    head = request(b"POST /v1/chat/completions", b"Transfer-Encoding: chunked")
    one = await try_one(rig.port, head + chunks)
    assert not one.wrong, one
    assert len([reply for reply in one.replies if reply.status >= 200]) <= 1, one.replies
    tried(1)
