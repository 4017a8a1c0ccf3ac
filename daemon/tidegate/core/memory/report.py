"""What a worker reports of its memory."""

from __future__ import annotations

from msgspec import Struct


class StepReport(Struct, frozen=True, kw_only=True):
    """What one reclaim step did. `promised_bytes` is what its plan expected to free."""

    step: str
    runs: int  # that lost something
    promised_bytes: int
    freed_bytes: int
    took_s: float


class Allocator(Struct, frozen=True, kw_only=True):
    """What the worker's allocators hold; zeros where they do not say."""

    pymalloc_blocks: int = 0  # objects in Python's own arenas
    malloc_in_use_bytes: int = 0
    malloc_free_bytes: int = 0  # kept by malloc, unused: what a trim may give back
    malloc_mapped_bytes: int = 0  # large pieces, each a mapping of its own
