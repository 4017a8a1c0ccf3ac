"""The error of a verb that cannot do what was asked: a text for people, a code for scripts."""

from __future__ import annotations

REFUSED = 1  # by the running tidegate
USAGE = 64  # sysexits.h: EX_USAGE
NOT_RUNNING = 69  # EX_UNAVAILABLE
OUTPUT_FAILED = 74  # EX_IOERR
NOT_YET = 75  # EX_TEMPFAIL
BAD_CONFIG = 78  # EX_CONFIG


class CliError(Exception):
    """Ends the command: the text is printed to stderr, `code` is the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
