"""Runs as listings show them."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.core.runs.run import Run
from tidegate.core.runs.summary import AttemptSummary, RunSummary
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.upstreams.pool import MAX_NAME_NOTED


def attempts_of(run: Run, now_s: float) -> list[AttemptSummary]:
    """Every try at an answer, the first one first."""
    return [
        AttemptSummary(
            number=attempt.number,
            upstream=attempt.upstream,
            model=attempt.model,
            tries=attempt.tries,
            outcome=attempt.outcome,
            seconds=(now_s if attempt.ended_s is None else attempt.ended_s) - attempt.started_s,
            upstream_request_id=attempt.request_id,
        )
        for attempt in run.attempts
    ]


def summarise(relay: Relay, names: Mapping[str, str]) -> RunSummary:
    """One run as listings show it; `names` are those of the tokens, by owner."""
    run = relay.run
    return RunSummary(
        id=run.id,
        state=run.state.value,
        reason=run.reason,
        # 1,000 of them must fit into a line of the channel.
        model=run.request.model[:MAX_NAME_NOTED],
        upstream=run.attempts[-1].upstream if run.attempts else None,
        attempts=len(run.attempts),
        created=run.created,
        ended=run.ended,
        first_seq=run.window.first_seq,
        next_seq=run.window.next_seq,
        bytes=run.account.total_bytes,
        subscribers=run.readers,
        token=names.get(run.owner),
    )
