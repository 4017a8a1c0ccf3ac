"""What a store is to its thread: tables in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from tidegate.gateway.stores.database import Database

T_contra = TypeVar("T_contra", contravariant=True)


class Store(Protocol[T_contra]):
    """The tables in a file. All of it is called by the thread, and raises StoreFault."""

    database: Database

    @property
    def wal_limit_bytes(self) -> int:
        """How large the WAL may be before it is emptied."""

    @property
    def is_full(self) -> bool:
        """Tell whether more is kept than there is room for."""

    def begin(self) -> None:
        """Begin with a file that was just opened."""

    def write(self, items: Sequence[T_contra], now: float) -> None:
        """Write all of them in one transaction."""

    def take_less(self) -> None:
        """Keep a quarter less for some time, where that is wise: the disk has no room for it."""

    def prune(self, now: float) -> bool:
        """Let go of a bite of what is too old or too much; False if there is none any more."""

    def figures(self) -> tuple[int, float | None]:
        """Count what is kept, and find when the oldest of it began."""
