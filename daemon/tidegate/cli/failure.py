"""How a verb ends when it cannot do what was asked: a text for a person, a code for a script."""

from __future__ import annotations

REFUSED = 1  # the running tidegate said no
USAGE = 64  # sysexits.h: EX_USAGE
NOT_RUNNING = 69  # EX_UNAVAILABLE
OUTPUT_FAILED = 74  # EX_IOERR
NOT_YET = 75  # EX_TEMPFAIL
BAD_CONFIG = 78  # EX_CONFIG


class CliError(Exception):
    """Printed to stderr; `code` is the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
