"""The request that an upstream is sent for a run: what of it is the client's, and what is ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from msgspec import Raw

from tidegate.core.formats.base import Format, Piece, RequestInfo, with_values
from tidegate.core.formats.openai import UsageStripper
from tidegate.core.runs.run import Run
from tidegate.gateway.upstreams.choice import Target

HOPS_HEADER = "x-tidegate-hops"  # so that a ring of gateways ends


class RequestExtras(NamedTuple):
    """What an upstream is sent beside the body."""

    content_type: str = "application/json"
    header_lines: str = ""  # the client's own, as far as the format needs them
    values: Mapping[str, Raw | None] = MappingProxyType({})  # for the body's own; None: without
    hops: int = 0  # through how many tidegates the request has come already


NO_EXTRAS = RequestExtras()


class ParsedRequest(NamedTuple):
    """A request, and what it means."""

    form: Format
    body: bytes
    info: RequestInfo
    extras: RequestExtras
    address: str = ""  # whose it is where there are no tokens


def body_for(target: Target, run: Run, extras: RequestExtras) -> Sequence[Piece]:
    """Build the body in pieces, the run's own where possible.

    Raises ValueError where the client's is such that nothing can be changed in it.
    """
    values = _values(target, run, extras)
    return with_values(run.body, extras.content_type, values) if values else [run.body]


def light_request(target: Target, parsed: ParsedRequest) -> tuple[bytes, Sequence[Piece]]:
    """Build head and body of a request in which at most the model is called otherwise.

    Raises ValueError and UpstreamError like `body_for` and `head_for`.
    """
    form, body, info, extras, _ = parsed
    values = _naming(target, info.model)
    pieces = with_values(body, extras.content_type, values) if values else [body]
    size = sum(map(len, pieces))
    return head_for(target, form, extras, size, streamed=info.stream), pieces


def head_for(
    target: Target, form: Format, extras: RequestExtras, body_bytes: int, *, streamed: bool
) -> bytes:
    """Build the head. Raises UpstreamError where the upstream cannot be used as configured."""
    return target.pool.request_head(
        "POST",
        form.path,
        body_bytes,
        stream=streamed,
        accept=form.framing.accept if streamed else form.accept,
        content_type=extras.content_type,
        at_root=form.at_root,
        more=f"{HOPS_HEADER}: {extras.hops + 1}\r\n{extras.header_lines}",
    )


def _naming(target: Target, model: str) -> dict[str, Raw | None]:
    """Call the model as the target does, where that is otherwise than the client does."""
    return {} if target.model == model else {"model": Raw(msgspec.json.encode(target.model))}


def _values(target: Target, run: Run, extras: RequestExtras) -> Mapping[str, Raw | None]:
    """What of the request is said differently to this target."""
    values = {**extras.values, **_naming(target, run.request.model)}
    if target.pool.upstream.ask_usage and run.request.streamed:
        asked = run.format.asking_usage(run.body)
        if asked:
            run.transcript.rewrite = UsageStripper()
        values = {**values, **(asked or {})}
    return values
