"""What an upstream's answer comes to where it is no stream: plain questions about head and body.

The relay asks and acts; nothing here changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import NamedTuple

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.base import Format, error_label
from tidegate.core.formats.foreign_json import BOM, is_json

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
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_OVERLOAD = frozenset({429, 503, 529})
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class Answer(NamedTuple):
    """What the creator is told when there is no stream: a plain answer, or why there is none."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def never_again(self) -> Answer:
        """Keep client libraries from repeating it by themselves, unless it says something else."""
        if any(name.lower() == "x-should-retry" for name, _ in self.headers):
            return self
        return self._replace(headers=(*self.headers, ("x-should-retry", "false")))


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
        """Though it was not asked for."""
        return self.headers.get("content-encoding", "").lower() not in {"identity", ""}

    @property
    def request_id(self) -> str | None:
        """What the upstream calls the request, for asking its owner about it."""
        said = self.headers.get("x-request-id") or self.headers.get("request-id") or ""
        return said if _REQUEST_ID.fullmatch(said) else None

    def retry_after_s(self, now: float) -> float | None:
        """Read when to come again, in seconds from `now` (Unix); None where it does not say.

        Only overload says so: elsewhere the header means other things, of a redirect, say. A date
        is measured by the upstream's own clock, if it tells the time.
        """
        if self.status not in _OVERLOAD:
            return None
        for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            if _NUMBER.fullmatch(text := self.headers.get(name, "")):
                return float(text) * unit_s  # of any number of digits: infinity is a float too
        until = _moment(self.headers.get("retry-after", ""))
        if until is None:
            return None
        theirs = _moment(self.headers.get("date", ""))
        return max(0.0, until - (now if theirs is None else theirs))

    def is_loading(self, body: bytes) -> bool:
        """llama.cpp's 503 while it loads its model."""
        said = b"unavailable_error" in body and b"oading model" in body
        return self.status == 503 and said

    def pass_on(self, body: bytes) -> Answer:
        """Pass on the upstream's own words, untouched, with the headers that concern the caller."""
        content_type = self.headers.get("content-type", "application/json")
        passed = tuple(
            (_RENAMED.get(name, name), value)
            for name, value in self.headers.items()
            if name.startswith(_PASSED_HEADERS)
        )
        return Answer(self.status, content_type, body, passed)

    def raw_head(self) -> Answer:
        """Write the head of an answer whose bytes are passed on as they come."""
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
        """Check that a status of success has an answer behind it. Raises UpstreamError."""
        told = form.error_in(body) if "json" in self.content_type else None
        if told is not None:
            raise UpstreamError(
                f"answered {self.status} with an error{told.label}",
                code="upstream_error_event",
                body=told.body,
                status=told.status,
            )
        if streamed:
            raise UpstreamError("answered a stream request without a stream", code="no_stream")
        if form.answers_json and not is_json(body.removeprefix(BOM)):
            raise UpstreamError("answered with something that is not JSON", code="not_json")


NO_REPLY = Reply()


def _moment(text: str) -> float | None:
    """Read the Unix time that a date of HTTP stands for; None for what is none."""
    if not 20 <= len(text) <= 40:  # "Sun, 29 Nov 2026 09:14:09 GMT"
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
