"""The tools of attack themselves: seeded, bounded, and able to find what is wrong."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from hostile import fuzz
from hostile.exchange import NotHttp, parse
from hostile.mutate import MOST_BYTES, every_byte, every_cut, mutants
from hostile.requests import BODIES, HEAD_WORDS, HEADS, lengthen


def test_the_same_seed_makes_the_same_inputs() -> None:
    """So a failure comes again; another seed makes others, and nearly all of them differ."""
    first, again, other = (list(mutants(HEADS, HEAD_WORDS, seed, 500)) for seed in ("1", "1", "2"))
    assert first == again != other
    assert first[: len(HEADS)] == HEADS
    assert len(set(first)) > 450
    assert max(map(len, first)) <= MOST_BYTES


def test_every_byte_and_every_cut_are_there() -> None:
    """As many as their names say, and each of them once."""
    assert len(set(every_byte(b"ab"))) == 2 * 256 - 1
    assert list(every_cut(b"ab")) == [b"", b"a", b"ab"]


def test_a_changed_body_gets_its_true_length() -> None:
    """Else nearly every changed body would be one that is still coming."""
    for body in BODIES:
        head, _, rest = lengthen(body + b"more").partition(b"\r\n\r\n")
        if b"Content-Length" in head:
            assert b"Content-Length: %d" % len(rest) in head


@pytest.mark.parametrize(
    "came",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"garbage",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
def test_what_is_no_http_is_seen(came: bytes) -> None:
    """An answer that no client could read is not taken for one."""
    with pytest.raises(NotHttp):
        list(parse(came))


def test_answers_one_behind_the_other_are_told_apart() -> None:
    """By length, by chunks, without a body, and the last one cut."""
    came = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\nx"
    )
    replies = list(parse(came))
    assert [(reply.status, reply.body) for reply in replies] == [
        (100, b""),
        (200, b"ab"),
        (200, b"c"),
        (204, b""),
        (400, b"x"),
    ]
    assert [reply.is_whole for reply in replies] == [True, True, True, True, False]


def fault(data: bytes) -> None:
    """Fail on a byte that is in nothing it begins with."""
    if b"\xff" in data:
        raise ZeroDivisionError


def test_a_fault_is_found_made_small_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with 1, keeps the one byte that is to blame, and says how to try it once more."""
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    target = fuzz.Plain([b"harmless and long enough"], [b"word"], fault)
    assert fuzz.fuzz({"planted": target}, "seed", for_s=60) == 1
    kept = sorted(tmp_path.iterdir())
    assert {path.read_bytes() for path in kept} == {b"\xff"}
    assert f"--again {kept[0]}" in capsys.readouterr().out
    assert fuzz.again({"planted": target}, kept[0]) == 1
    harmless = fuzz.Plain([b""], [b""], lambda data: None)
    assert fuzz.again({"planted": harmless}, kept[0]) == 0


def test_what_takes_too_long_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that never ends ends the wait for it, and is told."""
    monkeypatch.setattr(fuzz, "ONE_S", 0.05)
    target = fuzz.Plain([b"x"], [b""], lambda data: time.sleep(60))
    assert target.batch([b"x"]) == {b"x": "Wrong: it took more than 0.05 s"}


def test_what_is_fine_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a fault it ends with 0 when its time is over, and says how many were tried."""
    target = fuzz.Plain([b"x"], [b"y"], random.Random)
    assert fuzz.fuzz({"fine": target}, "seed", for_s=0.1) == 0
    assert "none was wrong" in capsys.readouterr().out
