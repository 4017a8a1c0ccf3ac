"""Whose fault it is that there is no answer, and what follows from it.

What went wrong becomes one `Fault`, and one table says what each fault means: whether the next
target is asked, whether the same one is asked once more, what is held against it, and what the
caller is told when no target is left. The relay does what the table says.

An upstream's status alone does not tell: 403 may be a refused key of ours or a refused prompt of
the caller's, 400 a prompt too long for this model only, 404 a model that the config names or one
that the caller made up. So the error's code, type and message are looked at, for the wordings of
the servers and clouds that are known. Where they say nothing, the status decides. Nothing of a
message goes into a log or a reason: it may repeat a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from tidegate.core.formats.foreign_json import BOM, JsonReader, UnreadableJson

_any: JsonReader[object] = JsonReader(object)
_MOST_SAID = 4000  # characters of a message that are looked at; the wordings come early


class Fault(Enum):
    """What went wrong with one try at one target."""

    __hash__ = object.__hash__

    FULL = "full"  # no slot within queue_s, or not even in the queue: busy, and not broken
    UNREACHED = "unreached"  # no connection, or no TLS over it
    HUNG_UP = "hung up"  # the connection ended before any byte of an answer
    CUT = "cut"  # the connection ended within the answer
    ENDED = "ended"  # the answer ended properly, before it was complete
    SILENT = "silent"  # first_output_s, plain_s, idle_s
    DOWN = "down"  # 502, 503, 504, 507, 529 and their like
    CRASHED = "crashed"  # a 500 without a reason
    BROKEN = "broken"  # a 500 with a reason in JSON: a request's own doing, perhaps
    BUSY = "busy"  # 408, 429
    OUR_KEY = "our key"  # 401, 402, 403: the key is the gateway's, never the caller's
    OUR_QUOTA = "our quota"  # 429 for want of credit, which no waiting brings back
    OUR_MODEL = "our model"  # there is no model of the name that the config has
    NO_ROUTE = "no route"  # it does not have what was asked for at this path
    TOO_LONG = "too long"  # more than this model's context holds; another may hold more
    GARBLED = "garbled"  # an answer that is none: not JSON, no stream, compressed, too large
    TOLD = "told"  # an error event behind the first output
    MISLED = "misled"  # a redirect: the config has a wrong address
    CONTENT = "content"  # the prompt itself is refused
    CALLER = "caller"  # a mistake in the request


class Held(Enum):
    """What is held against the target."""

    __hash__ = object.__hash__

    NOTHING = "nothing"  # it is shown, and that is all
    ALIVE = "alive"  # a refusal with a reason: the target does its work
    SUSPECTED = "suspected"  # it may be the request's mistake: see `breaker.Witness`
    TARGET = "target"  # counts against this model of this upstream
    UPSTREAM = "upstream"  # counts against all models of this upstream


class Verdict(NamedTuple):
    """What follows from a fault before the first output; afterwards only `held` counts."""

    goes_on: bool  # the next target is asked
    held: Held
    once_more: bool = False  # where no other target is left, the same one is asked once more
    is_ours: bool = False  # the caller is told 502 and whose mistake it was, and a repair opens
    keeps_words: bool = False  # though it is ours, the upstream's own answer is passed on


VERDICTS: Mapping[Fault, Verdict] = {
    Fault.FULL: Verdict(False, Held.NOTHING),
    Fault.UNREACHED: Verdict(True, Held.UPSTREAM),
    Fault.HUNG_UP: Verdict(True, Held.UPSTREAM, once_more=True),
    Fault.CUT: Verdict(True, Held.TARGET, once_more=True),
    Fault.ENDED: Verdict(True, Held.TARGET),
    Fault.SILENT: Verdict(True, Held.TARGET),
    Fault.DOWN: Verdict(True, Held.TARGET),
    Fault.CRASHED: Verdict(True, Held.TARGET, once_more=True),
    Fault.BROKEN: Verdict(True, Held.SUSPECTED, once_more=True),
    Fault.BUSY: Verdict(True, Held.NOTHING),
    Fault.OUR_KEY: Verdict(True, Held.ALIVE, is_ours=True),
    Fault.OUR_QUOTA: Verdict(True, Held.ALIVE, is_ours=True, keeps_words=True),
    Fault.OUR_MODEL: Verdict(True, Held.ALIVE, is_ours=True),
    Fault.NO_ROUTE: Verdict(True, Held.ALIVE),
    Fault.TOO_LONG: Verdict(True, Held.ALIVE),
    Fault.GARBLED: Verdict(True, Held.NOTHING),
    Fault.TOLD: Verdict(False, Held.NOTHING),
    Fault.MISLED: Verdict(False, Held.NOTHING),
    Fault.CONTENT: Verdict(False, Held.ALIVE),
    Fault.CALLER: Verdict(False, Held.ALIVE),
}

# What no status told: the codes of our own errors.
FAULT_OF_CODE: Mapping[str, Fault] = {
    "queue_full": Fault.FULL,
    "queue_s": Fault.FULL,
    "connect_failed": Fault.UNREACHED,
    "connect_timeout": Fault.UNREACHED,
    "upstream_disconnected": Fault.CUT,
    "upstream_ended": Fault.ENDED,
    "first_output_s": Fault.SILENT,
    "plain_s": Fault.SILENT,
    "idle_s": Fault.SILENT,
    "upstream_error_event": Fault.TOLD,
    "redirected": Fault.MISLED,
}

# What a status says by itself; those that are not here, see `_of_status`.
FAULT_OF_STATUS: Mapping[int, Fault] = {
    401: Fault.OUR_KEY,
    402: Fault.OUR_KEY,
    403: Fault.OUR_KEY,
    404: Fault.OUR_MODEL,
    405: Fault.NO_ROUTE,
    408: Fault.BUSY,
    429: Fault.BUSY,
    500: Fault.BROKEN,
    501: Fault.NO_ROUTE,
    505: Fault.CALLER,
    508: Fault.CALLER,  # a ring of gateways: another target would only make it longer
    510: Fault.CALLER,
    511: Fault.MISLED,  # the login page of a network
}

# --- the wordings that are known --------------------------------------------------------------

_CONTENT = re.compile(
    r"content[ _-]?(?:filter|policy|moderation|management)|(?<![.\w])moderation(?![.\w])"
    r"|moderation[ _-]?(?:blocked|failed)|policy[ _-]?violation"
    r"|responsible_?ai|data_?inspection|prohibited_content|unsafe_content|safety[ _-]?(?:system|"
    r"block|filter|violation)|(?:input|prompt|content|request) (?:was|is|has been) (?:flagged|"
    r"blocked)|violates? (?:our |the |openai'?s |anthropic'?s )?(?:usage|content)"
)
# OpenAI, vLLM, Groq: "maximum context length"; llama.cpp: "exceed_context_size_error", "available
# context size", "physical batch size"; Anthropic: "prompt is too long"; Ollama: "input length
# exceeds the context length"; vLLM: "maximum model length"; Google: "exceeds the maximum number of
# tokens"; Mistral: "too large for model with … maximum context length"; LM Studio: "context length
# of only"; Bedrock: "input is too long".
_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|size|window)|max(?:imum)?[ _](?:model|sequence)[ _](?:length|len)"
    r"|(?:prompt|input|request|message) (?:is )?too long|exceeds? the maximum number of "
    r"(?:input )?tokens|physical batch size|too many (?:input )?tokens|token limit exceeded"
)
_KEY = re.compile(
    r"(?:invalid|incorrect|missing|expired|no|wrong)[ _-]api[ _-]?key|api[ _-]?key (?:is )?"
    r"(?:not valid|invalid|missing|expired)|api_key_invalid|credit balance is too low"
)
# The account behind our key has no credit left. OpenAI: "insufficient_quota", "billing_not_active",
# "billing_hard_limit_reached"; Anthropic: "billing_error", "specified API usage limits"; DeepSeek:
# "Insufficient Balance"; LiteLLM: "budget_exceeded".
_QUOTA_CODE = re.compile(
    r"insufficient[ _-]?(?:quota|balance|credits?|funds)|billing_?(?:error|hard_limit|limit|"
    r"not_active|disabled)|spend(?:ing)?_?limit|payment_?required|budget_?exceeded"
)
_QUOTA = re.compile(
    r"exceeded your current quota|insufficient (?:quota|balance|credits?|funds)|out of credits?\b"
    r"|(?:spend(?:ing)?|billing)(?: hard)? (?:limit|cap)|budget has been exceeded"
    r"|reached your (?:specified )?(?:api )?usage limit"
)
# Google says the same of what is over in a minute, and when to come again.
_OVER_SOON = re.compile(r"resource_exhausted|(?:retry|try again) (?:in|after) [0-9]")
_MODEL_CODE = re.compile(r"model_?not_?(?:found|available)|invalid_model|deployment_?not_?found")
_NO_MODEL = re.compile(r"not a valid model|^invalid model\b")
_MODEL = re.compile(r"\bmodels?\b|\bdeployment\b|model_|_model")
# What else can be missing, of which the caller speaks: an earlier response, a file, a capability.
_OTHER_THING = re.compile(
    r"response[ _](?:with )?(?:id|not)|previous_response|\bfile\b|vector|conversation|container"
    r"|assistant|\bthread|\bbatch"
)
_CANNOT = re.compile(r"(?:not|n't|that|which) support")
_ROUTE = re.compile(
    r"^not found\.?$|file not found|invalid url|page not found|unexpected endpoint|unknown (?:url|"
    r"endpoint|path|route)|no (?:such )?route|unrecognized request url|method not allowed"
)


class _Wording(NamedTuple):
    """An error as an upstream wrote it, in lower case."""

    is_json: bool
    words: str  # its code, its type, what it is about
    message: str
    is_flagged: bool = False  # OpenRouter's moderation says what was flagged, in members of its own

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Say whether a word or the message has the pattern."""
        return bool(pattern.search(self.words) or pattern.search(self.message))


def fault_of_answer(
    status: int,
    body: bytes,
    *,
    names_ours: bool,
    is_told: bool = False,
    says_when: bool = False,
) -> Fault:
    """Find the fault behind an answer of status `status` that is no success.

    `names_ours`: the name of the model comes from the config and not from the caller. `is_told`:
    the error stood in a 200, and `status` is what it would have been. `says_when`: its head says
    when to come again.
    """
    fault = _of_status(status)
    if fault in {Fault.MISLED, Fault.GARBLED}:
        return fault
    wording = _read(body)
    if fault is Fault.BUSY:
        is_empty = status == 429 and _lacks_quota(wording, says_when=says_when)
        return Fault.OUR_QUOTA if is_empty else fault
    if is_told and status == 502:  # what an error event is that says no more than that it is one
        fault = Fault.BROKEN
    if fault is Fault.DOWN:
        return fault
    if wording.is_flagged or ((status < 500 or is_told) and wording.matches(_CONTENT)):
        return Fault.CONTENT
    if fault in {Fault.CALLER, Fault.BROKEN} and wording.matches(_TOO_LONG):
        return Fault.TOO_LONG
    return _of_words(fault, status, wording, names_ours=names_ours)


def _of_status(status: int) -> Fault:
    known = FAULT_OF_STATUS.get(status)
    if known is not None:
        return known
    if 300 <= status < 400:
        return Fault.MISLED
    if 400 <= status < 500:
        return Fault.CALLER
    return Fault.DOWN if 500 <= status < 600 else Fault.GARBLED


def _of_words(fault: Fault, status: int, wording: _Wording, *, names_ours: bool) -> Fault:
    """Find what the words make of a status."""
    if fault is Fault.BROKEN:
        return fault if wording.is_json else Fault.CRASHED
    if fault is Fault.OUR_MODEL:
        return _of_404(wording, names_ours=names_ours)
    if fault is Fault.CALLER and status in {400, 422}:
        if wording.matches(_KEY) or _lacks_quota(wording):
            return Fault.OUR_KEY
        is_missing = _MODEL_CODE.search(wording.words) or _NO_MODEL.search(wording.message)
        if names_ours and is_missing:
            return Fault.OUR_MODEL
    return fault


def _lacks_quota(wording: _Wording, *, says_when: bool = False) -> bool:
    """Say whether the account has no credit left; a code is certain, a message perhaps."""
    if _QUOTA_CODE.search(wording.words):
        return True
    is_over_soon = says_when or wording.matches(_OVER_SOON)
    return not is_over_soon and bool(_QUOTA.search(wording.message))


def _of_404(wording: _Wording, *, names_ours: bool) -> Fault:
    """Tell apart a model, a route, and something that the client named."""
    if not wording.is_json or wording.matches(_ROUTE):
        return Fault.NO_ROUTE
    is_other = wording.matches(_OTHER_THING) and not wording.matches(_MODEL)
    if is_other or _CANNOT.search(wording.message) or not names_ours:
        return Fault.CALLER
    return Fault.OUR_MODEL


def _read(body: bytes) -> _Wording:
    try:
        value = _any(body.removeprefix(BOM))
    except UnreadableJson:
        return _Wording(False, "", "")
    if isinstance(value, list) and value:  # Google
        value = value[0]
    outer = value if isinstance(value, dict) else {}
    error = outer.get("error", outer)
    inner: dict[str, object] = error if isinstance(error, dict) else outer
    words = " ".join(_texts(inner, ("code", "type", "param", "status", "reason")))
    message = error if isinstance(error, str) else next(_texts(inner, ("message", "detail")), "")
    about = inner.get("metadata")
    is_flagged = isinstance(about, dict) and ("flagged_input" in about or "reasons" in about)
    return _Wording(True, words.lower(), message[:_MOST_SAID].lower(), is_flagged)


def _texts(error: Mapping[str, object], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = error.get(name)
        if isinstance(value, str):
            yield value[:_MOST_SAID]
