"""Where local LLM servers listen by default: looked at when no upstream is configured.

The gateway serves what it finds there, and the doctor says what it has found.
"""

from __future__ import annotations

from typing import NamedTuple


class WellKnown(NamedTuple):
    """One kind of server."""

    title: str  # as its makers write it
    name: str  # as an upstream
    url: str


WELL_KNOWN = (
    WellKnown("Ollama", "ollama", "http://127.0.0.1:11434"),
    WellKnown("llama.cpp", "llamacpp", "http://127.0.0.1:8080"),
    WellKnown("LM Studio", "lmstudio", "http://127.0.0.1:1234"),
    WellKnown("vLLM", "vllm", "http://127.0.0.1:8000"),
)
