"""Runs as rows of the history and entries of the journal have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.core.formats import BY_PATH
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState
from tidegate.core.secret import name_shown
from tidegate.core.settings import Model
from tidegate.gateway.relay.light_answers import KeptAnswer
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.stores.journal_values import JournalEntry

_COMPLETED = RunState.COMPLETED.value


class Names:
    """What tokens and models are called where it is written down."""

    __slots__ = ("_models", "_tokens")

    def __init__(self, tokens: Mapping[str, str], models: Sequence[Model] = ()) -> None:
        """`tokens` by owner; `models` are those of the config, whose names are its owner's."""
        self._tokens = tokens
        self._models = {model.name for model in models}
        self._models |= {t.partition("/")[2] for model in models for t in model.all_targets}

    def token(self, owner: str) -> str:
        """Name the token of an owner; "" without one."""
        return self._tokens.get(owner, "")

    def model(self, name: str) -> str:
        """Name a model; of what does not look like its name only the size is told."""
        return name if name in self._models else name_shown(name)


def journaled(run: Run, names: Names, first_seq: int) -> JournaledRun:
    """Give what is kept of a run as it is now; its events are kept from `first_seq` on."""
    return JournaledRun(
        id=run.id,
        owner=run.owner,
        token=names.token(run.owner),
        path=run.format.path,
        model=names.model(run.request.model),
        upstream_model=names.model(run.attempts[-1].model) if run.attempts else "",
        upstreams=tuple(attempt.upstream for attempt in run.attempts),
        state=run.state.value,
        reason=run.reason,
        code=run.error_code,
        created=run.created,
        ended=run.ended,
        first_seq=first_seq,
        next_seq=run.window.next_seq,
        response_id=run.response_id,
        upstream_response_id=run.upstream_response_id,
        streamed=run.request.streamed,
        background=run.request.background,
        stored=run.request.stored,
    )


def row_of(relay: Relay, names: Names) -> RunRow:
    """Give the row of a run that is over."""
    run = relay.run
    last = run.attempts[-1] if run.attempts else None
    asked_s = run.attempts[0].started_s if run.attempts else run.ended_s
    body = relay.answer.body if relay.answer is not None else b""
    is_whole = run.state is RunState.COMPLETED and not run.request.streamed
    return RunRow(
        id=run.id,
        owner=run.owner,
        token=names.token(run.owner),
        asked=names.model(run.request.model),
        upstream=last.upstream if last is not None else "",
        model=names.model(last.model) if last is not None else "",
        format=run.format.name,
        streamed=run.request.streamed,
        outcome=run.state.value,
        code=run.error_code or "",
        attempts=len(run.attempts),
        began=run.created,
        ended=run.ended or run.created,
        queued_s=max(0.0, (asked_s or run.created_s) - run.created_s),
        first_output_s=run.first_output_s,
        request_bytes=run.request_bytes,
        answer_bytes=run.window.end.offset or (len(body) if is_whole else 0),
        usage=run.transcript.usage(),
    )


def light_row(answer: KeptAnswer, names: Names) -> RunRow:
    """Give the row of a light answer."""
    form, is_stream = BY_PATH[answer.path], answer.next_seq > 0
    # By position, as thousands a second are made: in the order of its fields.
    return RunRow(
        answer.id,
        answer.owner,
        names.token(answer.owner),
        names.model(answer.model),
        answer.upstream,
        names.model(answer.upstream_model),
        form.name,
        is_stream,
        _COMPLETED,
        "",
        1,
        answer.created,
        answer.ended,
        0.0,
        answer.ended_s - answer.began_s if is_stream else None,
        answer.request_bytes,
        len(answer.events),
        form.usage_of(answer.events, streamed=is_stream),
    )


def light_entry(answer: KeptAnswer, names: Names, *, keeps_text: bool) -> JournalEntry:
    """Give the entry of a light answer, which was a stream."""
    end = answer.next_seq
    run = answer.journaled(names.token(answer.owner), 0 if keeps_text else end)
    model, theirs = names.model(run.model), names.model(run.upstream_model)
    if (model, theirs) != (run.model, run.upstream_model):
        run = run._replace(model=model, upstream_model=theirs)
    return (
        JournalEntry(run, answer.events, 0, end) if keeps_text else JournalEntry(run, b"", end, 0)
    )
