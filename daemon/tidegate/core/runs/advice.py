"""What a person can do about an error, by its code: the second half of a message.

A reason says which upstream, what happened and after how long; it is kept and logged. What to do is
said to the caller alone, in the same sentence.
"""

from __future__ import annotations

_ADVICE = {
    "connect_failed": "check that it runs and that its url in the config is right",
    "connect_timeout": "check that it runs, or raise limits.connect_s for a slow network",
    "upstream_disconnected": "its own log may say why; ask again",
    "upstream_ended": "its own log may say why; ask again",
    "first_output_s": "if its model takes so long to load, raise limits.first_output_s",
    "plain_s": "for longer answers raise limits.plain_s, or ask for a stream",
    "idle_s": "its own log may say why; if it pauses so long on purpose, raise limits.idle_s",
    "total_s": "for longer answers raise limits.total_s",
    "queue_s": "ask again later, or raise limits.queue_s or the upstream's max_concurrent",
    "queue_full": "ask again later, or raise limits.max_queued or the upstream's max_concurrent",
    "event_too_large": "ask for less at once",
    "malformed_event": "its own log may say why; ask again",
    "not_json": "its own log may say why; ask again",
    "no_stream": "ask without stream: true, or look whether its url in the config is right",
    "redirected": "put the address that it redirects to in the config",
    "compressed": "switch compression off where it comes from",
    "answer_too_large": "ask for less at once, or raise limits.max_body",
    "memory_limit": "ask again in a moment, or give memory.budget more room",
    "upstream_error_event": "ask again",
    "upstream_429": "ask again later",
    "upstream_key_refused": "the owner of this gateway has to mend the key or its account",
    "upstream_model_missing": "the owner of this gateway has to mend the targets in its config",
    "worker_died": "what there was of the answer can be read again; ask anew for a whole one",
    "cursor_evicted": "read faster, or raise limits.window",
    **{f"upstream_{status}": "its own log may say why; ask again" for status in range(500, 600)},
}


def advise(reason: str, code: str | None) -> str:
    """Add to the reason what to do about it, where that is known."""
    advice = _ADVICE.get(code or "")
    return reason if advice is None else f"{reason}; {advice}"
