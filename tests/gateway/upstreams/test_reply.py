"""What an upstream's whole answer comes to."""

import math

import pytest

from tidegate.core.errors import UpstreamError
from tidegate.core.formats import CHAT, OLLAMA_CHAT, RESPONSES, SPEECH
from tidegate.gateway.upstreams.reply import Reply

NOW = 1795406400.0  # Mon, 23 Nov 2026 04:00:00 GMT
JSON = {"content-type": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": "Mon, 23 Nov 2026 04:00:40 GMT"}, 40.0),
        ({"retry-after": "Mon, 23 Nov 2026 03:59:00 GMT"}, 0.0),
        (
            {
                "retry-after": "Mon, 23 Nov 2026 09:00:40 GMT",
                "date": "Mon, 23 Nov 2026 09:00:33 GMT",
            },
            7.0,
        ),
        ({"retry-after": "Mon, 23 Nov 99999 04:00:00 GMT"}, None),
        ({"retry-after": "Someday, 23 Nov 2026"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "9" * 5000}, math.inf),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "\u0663"}, None),
    ],
)
def test_when_to_come_again(headers: dict[str, str], wait_s: float | None) -> None:
    """Seconds, fractions, milliseconds and dates are understood; what is strange is not there."""
    assert Reply(429, headers).retry_after_s(NOW) == wait_s
    assert Reply(500, headers).retry_after_s(NOW) is None


def test_the_headers_that_a_client_looks_at_are_passed_on() -> None:
    """Limits and retries are, cookies and framing not; the upstream's id has its own name."""
    headers = {
        **JSON,
        "x-ratelimit-remaining-requests": "7",
        "anthropic-ratelimit-tokens-limit": "9",
        "retry-after": "3",
        "x-request-id": "req_up",
        "set-cookie": "a=b",
        "connection": "close",
        "content-length": "2",
    }
    answer = Reply(429, headers).pass_on(b"{}")
    assert (answer.status, answer.body, answer.content_type) == (429, b"{}", JSON["content-type"])
    assert dict(answer.headers) == {
        "x-ratelimit-remaining-requests": "7",
        "anthropic-ratelimit-tokens-limit": "9",
        "retry-after": "3",
        "x-upstream-request-id": "req_up",
    }


@pytest.mark.parametrize("said", ["", "a b", "x\r\ny", "k" * 101, "sk=1"])
def test_a_strange_request_id_is_not_kept(said: str) -> None:
    """It is shown in logs and lists, so only a plain name is taken."""
    assert Reply(200, {"x-request-id": said}).request_id is None
    assert Reply(200, {"request-id": "req_1"}).request_id == "req_1"


def test_a_refusal_says_its_status_once() -> None:
    """And the kind of error where that is a plain word."""
    assert Reply(501).refusal(b'{"error":{"code":501}}') == "501"
    assert Reply(429).refusal(b'{"error":{"type":"rate_limit_error"}}') == "429 (rate_limit_error)"
    assert Reply(400).refusal(b"<html>") == "400"


@pytest.mark.parametrize(
    ("form", "body", "why"),
    [
        (CHAT, b'{"error":{"message":"busy","code":429}}', "with an error"),
        (OLLAMA_CHAT, b'{"error":"busy"}', "with an error"),
        (RESPONSES, b'{"error":{"message":"busy"}}', "with an error"),
        (CHAT, b'{"choices":[', "not JSON"),
        (CHAT, b'{"choices":["\xff"]}', "not JSON"),
    ],
)
def test_a_success_without_an_answer_is_none(form, body: bytes, why: str) -> None:
    """An error inside a 200, and half of an answer, are the upstream's faults."""
    with pytest.raises(UpstreamError, match=why):
        Reply(200, JSON).check_answer(form, body, streamed=False)


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (CHAT, b'\n\n{"choices":[],"error":null}'),
        (RESPONSES, b'{"id":"r","status":"failed","error":{"message":"it failed"}}'),
        (SPEECH, b"\xff\xfb"),
    ],
)
def test_an_answer_is_one(form, body: bytes) -> None:
    """Blank lines before it, a response that failed, and sound are answers."""
    Reply(200, JSON).check_answer(form, body, streamed=False)


def test_the_status_of_an_error_inside_a_200_is_its_own() -> None:
    """What it would have been: a client then knows whether to ask again."""
    with pytest.raises(UpstreamError) as caught:
        Reply(200, JSON).check_answer(CHAT, b'{"error":{"code":429}}', streamed=False)
    assert caught.value.status == 429
    body = b'{"error":{"code":"context_length_exceeded"}}'
    with pytest.raises(UpstreamError) as caught:
        Reply(200, JSON).check_answer(CHAT, body, streamed=False)
    assert caught.value.status == 400
