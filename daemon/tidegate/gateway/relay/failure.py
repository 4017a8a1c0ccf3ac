"""Why a try came to nothing: whose fault it was, and what its client is told.

Plain questions about what an upstream answered and about errors of ours; nothing here changes
anything. What follows from a fault stands in `core.upstreams.blame`.
"""

from __future__ import annotations

from typing import NamedTuple

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.base import ErrorText, Format
from tidegate.core.formats.foreign_json import is_json
from tidegate.core.runs.state import Trigger
from tidegate.core.upstreams.blame import FAULT_OF_CODE, VERDICTS, Fault, Held, fault_of_answer
from tidegate.core.upstreams.health import TargetRefusal
from tidegate.gateway.upstreams.choice import Target
from tidegate.gateway.upstreams.reply import Answer, Reply

_KEY_TEXTS = {
    401: "refused the key of this gateway",
    402: "wants payment from the owner of this gateway's key",
    403: "does not allow this to the key of this gateway",
    429: "has no credit left for the owner of this gateway's key",
}


class Failure(NamedTuple):
    """What came of a try that failed."""

    fault: Fault
    reason: str  # for people; it names the upstream
    code: str
    answer: Answer | None = None  # the upstream's own words, passed on if no target is left
    refusal: TargetRefusal | None = None  # where the mistake is the config's, and not the caller's
    trigger: Trigger = Trigger.FAIL  # how the run ends if no target is left


def failure_of(
    target: Target,
    error: UpstreamError,
    fault: Fault | None,
    answer: Answer | None,
    *,
    status: int,
    after: str,
) -> Failure:
    """Describe what `error` means for the try at `target`.

    `fault` is known where the upstream said it; `answer` is what it said, and `status` the one that
    it answered with. `after` ends the reason: how long after the request it happened.
    """
    secret = target.pool.secret
    if error.body:
        status, body = error.status, secret.hide_bytes(error.body)
        answer = Answer(status, "application/json", body)
        fault = fault_of_answer(status, body, names_ours=target.names_ours, is_told=True)
    if fault is None:
        fault = FAULT_OF_CODE.get(error.code, Fault.GARBLED)
    what = secret.hide(str(error))
    if VERDICTS[fault].is_ours:
        return _own_mistake(target, fault, what, answer, status)
    return Failure(fault, f'upstream "{target.pool.name}" {what}{after}', error.code, answer)


def _own_mistake(
    target: Target, fault: Fault, what: str, answer: Answer | None, status: int
) -> Failure:
    pool, model = target.pool, target.model
    if fault in {Fault.OUR_KEY, Fault.OUR_QUOTA}:
        code = "upstream_key_refused"
        refusal = TargetRefusal("", f"{_KEY_TEXTS.get(status, _KEY_TEXTS[401])} ({pool.key_name})")
    else:
        code = "upstream_model_missing"
        text = f'has no model "{model}", which the config of this gateway names'
        refusal = TargetRefusal(model, text)
    own = answer.never_again() if answer and VERDICTS[fault].keeps_words else None
    said = what.removeprefix("refused with ")
    reason = f'upstream "{pool.name}" {refusal.text}: {said}'
    return Failure(fault, reason, code, own, refusal)


def error_of(
    target: Target, fault: Fault, reply: Reply, body: bytes, form: Format, *, is_whole: bool
) -> tuple[UpstreamError, Answer | None]:
    """Describe what the upstream said instead of an answer, and what of it may be passed on.

    `body` has the key hidden; it has been cut where it is not `is_whole`.
    """
    status, is_refusal = reply.status, VERDICTS[fault].held is Held.ALIVE
    if fault is Fault.MISLED:
        what = f"answered {status}: redirects are not followed"
        return UpstreamError(what, code="redirected"), None
    if fault is Fault.GARBLED:
        return UpstreamError(f"answered {status}, which is no HTTP status"), None
    what = f"{'refused with' if is_refusal else 'answered'} {reply.refusal(body)}"
    answer = None
    if not is_whole or reply.is_compressed:
        if is_refusal:
            answer = _in_our_words(reply, form, f'upstream "{target.pool.name}" {what}')
    elif is_refusal or is_json(body):
        answer = reply.pass_on(body)  # a proxy's page of HTML tells no client library anything
    return UpstreamError(what, code=f"upstream_{status}"), answer


def _in_our_words(reply: Reply, form: Format, reason: str) -> Answer:
    """A refusal whose body cannot be read: compressed unasked, or larger than we take."""
    reason += ", in a body that is compressed or too large to pass on; its own log may say why"
    error = ErrorText(reply.status, reason, "invalid_request_error", f"upstream_{reply.status}")
    return reply.pass_on(b"")._replace(content_type="application/json", body=form.error_body(error))
