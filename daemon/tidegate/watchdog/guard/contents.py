"""What stands in a bundle of evidence: sizes, ages, names and places in the code.

It holds no text of any run, no key and no token, and a key that found its way into a text all the
same is cut out of the document.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from tidegate.config import LoadedConfig
from tidegate.core import decoding
from tidegate.core.protocol.worker import Inspected
from tidegate.core.runs.summary import RunSummary
from tidegate.core.secret import name_shown
from tidegate.core.settings import Settings
from tidegate.machine.sample import SampleError, machine_bytes
from tidegate.watchdog.guard import bundle, kernel
from tidegate.watchdog.workers.process import WorkerHandle

MIN_SECRET_LENGTH = 6  # what is shorter is no secret, and is in every other word
MAX_REASON_LENGTH = 200


def show_settings(settings: Settings) -> dict[str, object]:
    """Show the settings; of headers the names, and of keys whether there is one.

    People put the key itself where its name goes.
    """
    shown = _with_defaults(settings)
    upstreams = shown["upstream"]
    assert isinstance(upstreams, list)
    for upstream in upstreams:
        for name in ("api_key_env", "api_key_file"):
            upstream[name] = upstream[name] is not None
        upstream["headers"] = list(upstream["headers"])
    for place in (shown["heartbeat"], *_tables_in(shown["notify"])):
        assert isinstance(place, dict)
        for name in ("url", "url_env", "url_file"):  # some of them hold a secret
            del place[name]
    return shown


def _tables_in(shown: object) -> list[object]:
    return shown if isinstance(shown, list) else []


def _with_defaults(table: msgspec.Struct) -> dict[str, object]:
    """Show a table of settings by the names that the file has, with what is not set too."""
    return {
        info.encode_name: _shown(getattr(table, info.name))
        for info in msgspec.structs.fields(table)
    }


def _shown(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return _with_defaults(value)
    return [_shown(each) for each in value] if isinstance(value, list) else value


def show_answer(answer: Inspected) -> dict[str, object]:
    """Show a worker's inside, its runs apart."""
    return {
        "ledger": answer.ledger,
        "runs_total": answer.runs_total,
        "tasks": answer.tasks,
        "descriptors": answer.descriptors,
        "types": answer.types,
        "stacks": [stack.splitlines() for stack in answer.stacks],
    }


def show_run(generation: int, run: RunSummary, at: float) -> dict[str, object]:
    """Show a run's sizes and ages. A model's name is the client's text: only if it looks like one.

    `at` is Unix seconds.
    """
    return {
        "generation": generation,
        "id": run.id,
        "state": run.state,
        "model": name_shown(run.model),
        "upstream": run.upstream,
        "attempts": run.attempts,
        "bytes": run.bytes,
        "age_s": round(at - run.created, 1),
        "ended_s": None if run.ended is None else round(at - run.ended, 1),
        "first_seq": run.first_seq,
        "next_seq": run.next_seq,
        "subscribers": run.subscribers,
        "reason": run.reason[:MAX_REASON_LENGTH] if run.reason else None,
    }


def secrets_of(config: LoadedConfig | None) -> list[str]:
    """List what must not be shown, the longest first, for one may begin with another."""
    keys = config.hidden if config else ()
    return sorted((k for k in keys if len(k) >= MIN_SECRET_LENGTH), key=len, reverse=True)


def without_keys(
    sections: dict[str, bundle.Section], secrets: list[str]
) -> dict[str, bundle.Section]:
    """Cut keys out: none should be here, but an upstream may use one as the name of its error."""
    shown = {}
    for name, section in sections.items():
        text = msgspec.json.encode(section).decode()
        clean = text_without_keys(
            text, [msgspec.json.encode(each).decode()[1:-1] for each in secrets]
        )
        shown[name] = section if clean == text else decoding.json(clean.encode())
    return shown


def text_without_keys(text: str, secrets: list[str]) -> str:
    """Cut keys out of one text. `secrets` as `secrets_of` has them."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def show_process(pid: int, what: str) -> dict[str, object]:
    """Show a process as the kernel sees it; `what` it is, as text."""
    return {"pid": pid, "is": what, **kernel.of_process(pid)}


def show_worker(worker: WorkerHandle) -> dict[str, object]:
    """Show a worker's process, and why it has to go, if it has."""
    reason = worker.condemned or worker.failure
    what = "a worker" if reason is None else f"a worker that has to go: {reason}"
    return show_process(worker.pid, what)


def show_host() -> dict[str, object]:
    """Show the machine: its software, cores, memory and load."""
    system = os.uname()
    return {
        "python": sys.version.split("\n", maxsplit=1)[0],
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "load": _load(),
    }


def _memory_bytes() -> int | None:
    try:
        return machine_bytes()
    except SampleError:
        return None


def _load() -> list[float]:
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except OSError:  # a sandbox may hide it
        return []


def utc(at: float) -> str:
    """Write Unix seconds as people do."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
