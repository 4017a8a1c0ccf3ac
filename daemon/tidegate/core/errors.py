"""Errors that say whose fault it is.

`code` is what a program reads, the message is what a person reads. The gateway turns them into
the caller's error format; core only names them.
"""

from __future__ import annotations


class TidegateError(Exception):
    """The base of every error that tidegate reports by name."""

    code = "tidegate_error"


class UpstreamError(TidegateError):
    """Raised when an upstream gave no answer. `core.upstreams.blame` says what follows."""

    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "upstream_error",
        body: bytes = b"",
        status: int = 502,
    ):
        """Take the upstream's own answer as `body`, for its client alone: it may repeat a prompt.

        It is sent with `status`, the one that it would have had.
        """
        super().__init__(message)
        self.body = body
        self.status = status
        self.code = code


class EventTooLarge(UpstreamError):
    """Raised when one event outgrew its bound; it is never cut, the attempt fails."""

    def __init__(self, limit_bytes: int):
        super().__init__(f"sent an event of more than {limit_bytes} bytes", code="event_too_large")


class LedgerFull(TidegateError):
    """Raised when the ledger has no room left, even after finished windows went."""

    code = "memory_limit"

    def __init__(self, total_bytes: int, limit_bytes: int, *, of: str = ""):
        """Tell how full it is; `of` names the part that is full, where it is not the whole."""
        super().__init__(
            f"memory limit: {total_bytes >> 10} KiB {f'of {of} ' if of else ''}retained"
            f" of {limit_bytes >> 10} KiB allowed"
        )


class CursorEvicted(TidegateError):
    """Raised when the events asked for are no longer retained."""

    code = "cursor_evicted"

    def __init__(self, first_seq: int):
        super().__init__(f"events before seq {first_seq} are no longer kept")
        self.first_seq = first_seq
