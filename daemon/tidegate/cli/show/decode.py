"""Decodes what a running tidegate answers, for the screen.

Unknown fields are skipped, so a newer daemon can be asked. What lacks a field that the screen
needs comes from a tidegate of another version, and is said to.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from tidegate.cli.failure import REFUSED, CliError
from tidegate.core.decoding import Decoder, Undecodable
from tidegate.core.protocol.control import TestedReceiver
from tidegate.core.protocol.reload import Reloaded, ReloadRefused, Why
from tidegate.core.protocol.status import Status
from tidegate.core.records.usage import UsageLine
from tidegate.core.runs.summary import RunSummary
from tidegate.core.upstreams.summary import ModelAlias, UpstreamModels

_Answer = TypeVar("_Answer", bound=Struct)


class RunListing(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate runs`."""

    data: list[RunSummary]


class UsageListing(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate usage`."""

    data: list[UsageLine]


class ForgetResult(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate forget`."""

    runs: int


class ModelListing(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate models`."""

    data: list[UpstreamModels]
    aliases: list[ModelAlias]


class SweepResult(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate sweep`."""

    runs: int
    bytes: int
    reasons: dict[str, int] = {}


class BundleResult(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate bundle`."""

    path: str
    bytes: int


class NotifyTestResult(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate notify test`."""

    receivers: list[TestedReceiver]


def read_status(answer: msgspec.Raw) -> Status:
    """Decode the status in a control reply. Raises CliError, as the others do."""
    return _read(answer, Status)


def read_runs(answer: msgspec.Raw) -> list[RunSummary]:
    """Decode the runs in a control reply."""
    return _read(answer, RunListing).data


def read_usage(answer: msgspec.Raw) -> list[UsageLine]:
    """Decode what was used, in a control reply."""
    return _read(answer, UsageListing).data


def read_forgotten(answer: msgspec.Raw) -> int:
    """Decode how many runs were forgotten, in a control reply."""
    return _read(answer, ForgetResult).runs


def read_models(answer: msgspec.Raw) -> ModelListing:
    """Decode the upstreams and aliases in a control reply."""
    return _read(answer, ModelListing)


def read_sweep(answer: msgspec.Raw) -> SweepResult:
    """Decode what was swept, in a control reply."""
    return _read(answer, SweepResult)


def read_bundle(answer: msgspec.Raw) -> BundleResult:
    """Decode where the bundle is, in a control reply."""
    return _read(answer, BundleResult)


def read_tested(answer: msgspec.Raw) -> list[TestedReceiver]:
    """Decode what receivers answered to a test, in a control reply."""
    return _read(answer, NotifyTestResult).receivers


def read_reload(answer: msgspec.Raw) -> Reloaded | None:
    """Decode what a reload did, in a control reply; None when it was the first good config."""
    return None if bytes(answer) == b"null" else _read(answer, Reloaded)


def read_refusal(answer: msgspec.Raw) -> Why | None:
    """Decode why a reload was refused; None where that is not known."""
    try:
        return Decoder(ReloadRefused).decode(answer).refused
    except Undecodable:
        return None


def _read(answer: msgspec.Raw, kind: type[_Answer]) -> _Answer:
    try:
        return Decoder(kind).decode(answer)
    except Undecodable as error:
        raise CliError(
            f"the running tidegate is of another version ({error}); try --json", REFUSED
        ) from error
