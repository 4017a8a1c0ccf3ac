"""Rows of the history, as runs leave them."""

from __future__ import annotations

from typing import Any

from tidegate.core.records.history import RunRow
from tidegate.core.records.usage import TokenUsage


def row(**changes: Any) -> RunRow:
    """A run that completed, but for `changes`."""
    values: dict[str, Any] = {
        "id": "run_1",
        "owner": "0" * 64,
        "token": "phone",
        "asked": "fast",
        "upstream": "box",
        "model": "qwen3:8b",
        "format": "chat completion",
        "streamed": True,
        "outcome": "completed",
        "code": "",
        "attempts": 1,
        "began": 1000.0,
        "ended": 1004.2,
        "queued_s": 0.0,
        "first_output_s": 0.31,
        "request_bytes": 300,
        "answer_bytes": 10240,
        "usage": TokenUsage(26, 290, 20, 100),
    }
    return RunRow(**(values | changes))
