"""How much of what clients send fits into a ledger; both processes ask this."""

from __future__ import annotations

_BESIDE_BODY_BYTES = 128 * 1024  # of the intake: the connection of a body, and its head


def largest_body_bytes(limit_bytes: int) -> int:
    """Compute the largest body that a ledger with this limit ever has room for.

    While it arrives it takes up to an eighth more, and all requests together have half the limit.
    """
    return max(0, limit_bytes // 2 - _BESIDE_BODY_BYTES) * 8 // 9
