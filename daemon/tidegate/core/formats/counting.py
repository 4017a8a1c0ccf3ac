"""How many tokens an answer took, as its upstream counted them, whatever it calls them.

`Transcript.usage` says it of a run, `Format.usage_of` of a whole answer's bytes. Both ask here what
an event or a body says. What is no plausible number is unknown: nothing is estimated, and nothing
is added up but what the upstream itself counts apart.

OpenAI, and who speaks like it, counts what was cached as part of the input. Anthropic counts it
beside the input, and tells the input when the answer begins (https://docs.anthropic.com/en/api).
Some count what was thought beside the output: their total says so. llama.cpp tells in its `timings`
what was computed, also where its client did not ask for a count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import Raw, Struct

from tidegate.core.formats.foreign_json import JsonReader, UnreadableJson, is_object, members_of
from tidegate.core.records.usage import NO_USAGE, TokenUsage

MOST_BYTES = 8 * 1024  # of an object with counts; real ones have a few hundred
MOST_DIGITS = 9  # no answer has a billion tokens
USAGE = b'"usage"'
TIMINGS = b'"timings"'

_INPUT = ("input_tokens", "prompt_eval_count")
_OUTPUT = ("completion_tokens", "output_tokens", "eval_count")
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens")
_REASONING = ("reasoning_tokens",)
_ABOUT_INPUT = ("prompt_tokens_details", "input_tokens_details")
_ABOUT_OUTPUT = ("completion_tokens_details", "output_tokens_details")


class _Inner(Struct):
    usage: Raw = Raw()


class _Said(Struct):
    """Where an event or a body may hold counts. Raw: what else is in it may be large."""

    usage: Raw = Raw()
    response: Raw = Raw()
    message: Raw = Raw()
    x_groq: Raw = Raw()
    choices: Raw = Raw()
    timings: Raw = Raw()
    eval_count: Raw = Raw()
    prompt_eval_count: Raw = Raw()


_said = JsonReader(_Said)
_inner = JsonReader(_Inner)
_inners = JsonReader(list[_Inner])


class Counts(NamedTuple):
    """What was told of an answer's tokens, before it is added up."""

    input: int | None = None
    read: int | None = None  # from a cache, beside the input
    written: int | None = None  # to a cache, beside the input
    output: int | None = None
    total: int | None = None
    cached: int | None = None  # of the input
    reasoning: int | None = None

    def after(self, before: Counts) -> Counts:
        """Fill in what only an earlier event told."""
        if self is NO_COUNTS or before is NO_COUNTS:
            return before if self is NO_COUNTS else self
        return Counts._make(map(_either, self, before))

    def usage(self, *, only_input: bool = False) -> TokenUsage:
        """Add it up. `only_input`: there is no output, so that all there is was input."""
        if self is NO_COUNTS:
            return NO_USAGE
        sent, output, total, reasoning = self.input, self.output, self.total, self.reasoning
        if sent is not None:
            sent += (self.read or 0) + (self.written or 0)
        if only_input:
            sent = total if sent is None else sent
        elif total is not None and sent is not None:
            is_beside = reasoning and output is not None and total == sent + output + reasoning
            output = total - sent if is_beside else output
        cached = self.read if self.cached is None else self.cached
        if cached is not None and (sent is None or cached > sent):
            cached = None
        if reasoning is not None and (output is None or reasoning > output):
            reasoning = None
        if sent is None and output is None:
            return NO_USAGE
        return TokenUsage(sent, output, cached, reasoning)


NO_COUNTS = Counts()


def last_counts(
    events: Sequence[bytes], words: Sequence[bytes], data_of: Callable[[bytes], bytes]
) -> Counts:
    """Read the counts of the last event that has any.

    Nothing is counted without one of `words`. `data_of` gives the payload of an event.
    """
    tail = b"".join(events)
    for word in words:
        if word in tail:
            break
    else:
        return NO_COUNTS  # nearly always where no client asks
    for event in reversed(events):
        for word in words:
            if word in event and (counts := counts_in(data_of(event))) is not NO_COUNTS:
                return counts
    return NO_COUNTS


def counts_in(data: bytes) -> Counts:
    """Read the counts of an event's payload, or of a whole answer."""
    try:
        said = _said(data)
        return (
            _read(said.usage)
            or _of_inner(said.response)
            or _of_inner(said.message)
            or _of_inner(said.x_groq)
            or _of_choice(said.choices)
            or _of_line(said)
            or _of_timings(said.timings)
            or NO_COUNTS
        )
    except UnreadableJson:
        return NO_COUNTS


def _of_inner(raw: Raw) -> Counts | None:
    return _read(_inner(raw).usage) if is_object(raw) else None


def _of_choice(raw: Raw) -> Counts | None:
    """Read the counts that some (Moonshot) put into the choice."""
    view = memoryview(raw)
    is_list = len(view) <= MOST_BYTES and bytes(view[:2]) == b"[{"
    for choice in _inners(raw) if is_list else ():
        if counts := _read(choice.usage):
            return counts
    return None


def _of_line(said: _Said) -> Counts | None:
    """Read Ollama's last line."""
    counts = Counts(input=_number(said.prompt_eval_count), output=_number(said.eval_count))
    return None if counts == NO_COUNTS else counts


def _of_timings(raw: Raw) -> Counts | None:
    """Read llama.cpp's: what it did not compute came from its cache, where it tells of that."""
    said = _members(raw)
    cached, output = _first(said, ("cache_n",)), _first(said, ("predicted_n",))
    computed = None if cached is None else _first(said, ("prompt_n",))
    if computed is None and output is None:
        return None
    return Counts(input=computed, read=cached, output=output)


def _read(raw: Raw) -> Counts | None:
    """Read an object of counts; None where it says nothing."""
    said = _members(raw)
    if not said:
        return None
    read = written = None
    sent = _first(said, ("prompt_tokens",))
    if sent is None:
        sent = _first(said, _INPUT)
        read = _first(said, ("cache_read_input_tokens",))
        written = _first(said, ("cache_creation_input_tokens",))
    cached, reasoning = _first(said, _CACHED), _first(said, _REASONING)
    for name in _ABOUT_INPUT:
        if cached is None and name in said:
            cached = _first(_members(said[name]), _CACHED)
    for name in _ABOUT_OUTPUT:
        if reasoning is None and name in said:
            reasoning = _first(_members(said[name]), _REASONING)
    if cached is None and read is None:  # beside `prompt_tokens` it is part of them
        cached = _first(said, ("cache_read_input_tokens",))
    output, total = _first(said, _OUTPUT), _first(said, ("total_tokens",))
    counts = Counts(sent, read, written, output, total, cached, reasoning)
    return None if counts == NO_COUNTS else counts


def _members(raw: Raw) -> dict[str, Raw]:
    """Read the members of a small object; none of anything else. Raises UnreadableJson."""
    return members_of(raw) if is_object(raw) and len(memoryview(raw)) <= MOST_BYTES else {}


def _first(said: dict[str, Raw], names: tuple[str, ...]) -> int | None:
    """Find the first of these members that is a plausible number."""
    for name in names:
        if name in said and (number := _number(said[name])) is not None:
            return number
    return None


def _number(raw: Raw) -> int | None:
    digits = bytes(raw)
    return int(digits) if len(digits) <= MOST_DIGITS and digits.isdigit() else None


def _either(later: int | None, before: int | None) -> int | None:
    return later or (later if before is None else before)
