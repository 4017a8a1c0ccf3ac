"""What an upstream's answer comes to where it is no stream: plain questions about head and body.

The relay asks and acts; nothing here changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tidegate.core.errors import UpstreamError
from tidegate.core.foreign_json import BOM, is_json
from tidegate.core.formats.base import RETRYABLE_STATUS, Format, error_label

# An upstream that says when to come again is asked once more, if that is soon: a client waits for
# half a minute without a word of it, and official ones ask again themselves.
MOST_WAIT_S = 30.0

# What a caller's library looks at. The upstream's own id gets another name, for ours has that one.
_PASSED_HEADERS = (
    "retry-after",
    "x-should-retry",
    "x-ratelimit-",
    "anthropic-ratelimit-",
    "openai-processing-ms",
    "x-request-id",
    "request-id",
)
_RENAMED = {"x-request-id": "x-upstream-request-id", "request-id": "x-upstream-request-id"}
_NUMBER = re.compile(r"[0-9]{1,8}(\.[0-9]{1,8})?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class Answer(NamedTuple):
    """What the creator is told when there is no stream: a plain answer, or why there is none."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Reply(NamedTuple):
    """The head of an upstream's answer; header names are in lower case."""

    status: int = 0
    headers: Mapping[str, str] = MappingProxyType({})

    @property
    def is_success(self) -> bool:
        """It claims to be an answer."""
        return 200 <= self.status < 300

    @property
    def content_type(self) -> str:
        """In lower case."""
        return self.headers.get("content-type", "").lower()

    @property
    def is_compressed(self) -> bool:
        """Though nobody asked for it."""
        return self.headers.get("content-encoding", "").lower() not in {"identity", ""}

    @property
    def request_id(self) -> str | None:
        """What the upstream calls the request, for whoever asks its owner about it."""
        said = self.headers.get("x-request-id") or self.headers.get("request-id") or ""
        return said if _REQUEST_ID.fullmatch(said) else None

    @property
    def retry_after_s(self) -> float | None:
        """When to come again, in seconds, if that is soon enough; None otherwise."""
        for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            if _NUMBER.fullmatch(text := self.headers.get(name, "")):
                wait_s = float(text) * unit_s
                return wait_s if wait_s <= MOST_WAIT_S else None
        return None  # a date is for those who wait longer

    def is_loading(self, body: bytes) -> bool:
        """llama.cpp's 503 while it loads its model."""
        said = b"unavailable_error" in body and b"oading model" in body
        return self.status == 503 and said

    def pass_on(self, body: bytes) -> Answer:
        """The upstream's own words, untouched, with the headers that concern the caller."""
        content_type = self.headers.get("content-type", "application/json")
        passed = tuple(
            (_RENAMED.get(name, name), value)
            for name, value in self.headers.items()
            if name.startswith(_PASSED_HEADERS)
        )
        return Answer(self.status, content_type, body, passed)

    def raw_head(self) -> Answer:
        """The head of an answer whose bytes are passed on as they come."""
        head = self.pass_on(b"")
        chunked = "transfer-encoding" in self.headers
        length = None if chunked else self.headers.get("content-length")
        more = (("content-length", length),) if length is not None else ()
        return head._replace(headers=(*head.headers, *more))

    def refusal(self, body: bytes) -> str:
        """ "429 (rate_limit_error)", for people."""
        label = error_label(body)
        return f"{self.status}{'' if label == f' ({self.status})' else label}"

    def check_answer(self, form: Format, body: bytes, *, streamed: bool) -> None:
        """Raises UpstreamError where a status of success has no answer behind it."""
        told = form.error_in(body) if "json" in self.content_type else None
        if told is not None:
            raise UpstreamError(
                f"answered {self.status} with an error{told.label}",
                code="upstream_error_event",
                said=told.body,
                status=told.status,
                retryable=told.status in RETRYABLE_STATUS,
            )
        if streamed:
            raise UpstreamError("answered a stream request without a stream", code="no_stream")
        if form.answers_json and not is_json(body.removeprefix(BOM)):
            raise UpstreamError("answered with something that is not JSON", code="not_json")
