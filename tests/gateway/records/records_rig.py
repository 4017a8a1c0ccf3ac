"""What was written of runs, and a worker that died in the middle of one."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, Rig
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.gateway.stores.journal_values import FoundRun

# Writes one entry as a worker does, and waits to be killed.
_WRITER = """
import asyncio, base64, json, sys
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.ledger import Ledger
from tidegate.core.settings import History, Journal
from tidegate.gateway.stores.journal_values import JournalEntry
from tidegate.gateway.stores.stores import Stores

async def write(fields, events, places, count):
    stores = Stores(asyncio.get_running_loop(), Ledger().stores)
    stores.configure(Journal(), History(), StorePlaces(**places))
    await stores.open()
    fields["upstreams"] = tuple(fields["upstreams"])
    run = JournaledRun(**fields)
    stores.put([JournalEntry(run, events, run.first_seq, count)], [])
    await stores.flush(10.0)
    print("written", flush=True)
    await asyncio.sleep(60)

fields, events, places, count = json.load(sys.stdin)
asyncio.run(write(fields, base64.b64decode(events), places, count))
"""


def new_places(folder: Path) -> StorePlaces:
    """Directories as the watchdog gives them."""
    for name in ("memory", "disk"):
        (folder / name).mkdir(mode=0o700)
    return StorePlaces(memory=str(folder / "memory"), disk=str(folder / "disk"))


def under_way(events: list[bytes], **changes: object) -> JournaledRun:
    """A run that its worker is still giving."""
    run = JournaledRun(
        id="run_" + "5" * 32,
        owner="",
        token="",
        path="/chat/completions",
        model="m",
        upstream_model="theirs",
        upstreams=("box",),
        state="streaming",
        reason=None,
        code=None,
        created=1_795_000_000.0,
        ended=None,
        first_seq=0,
        next_seq=len(events),
        response_id=None,
        upstream_response_id=None,
        streamed=True,
        background=False,
        stored=True,
    )
    return run._replace(**changes)  # type: ignore[arg-type]


def leave_behind(places: StorePlaces, run: JournaledRun, events: list[bytes]) -> None:
    """Have another process write a run that is under way, and kill it then."""
    said = [
        run._asdict(),
        base64.b64encode(b"".join(events)).decode(),
        {"memory": places.memory, "disk": places.disk},
        len(events),
    ]
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            writer.stdin.write(json.dumps(said).encode())
            writer.stdin.close()
            assert writer.stdout.readline() == b"written\n"
        finally:
            writer.send_signal(signal.SIGKILL)


async def found(rig: Rig, run_id: str) -> FoundRun | None:
    """What the journal has of a run."""
    rig.gateway.recorder.flush()
    return await rig.gateway.stores.find(run_id, None)


async def rows(rig: Rig) -> list[RunRow]:
    """What the history has, newest first."""
    rig.gateway.recorder.flush()
    return await rig.gateway.stores.list_rows(None, 1000)


async def release(rig: Rig) -> None:
    """Have memory forget what is over; what is written stays."""
    await rig.idle()
    registry = rig.gateway.registry

    def is_empty() -> bool:
        registry.sweep(rig.gateway.loop.time(), finished=True)
        return not registry.finished_count

    await until(is_empty, DEADLINE_S, "nothing is kept in memory")
    rig.gateway.recorder.flush()
    await rig.gateway.stores.flush(DEADLINE_S)
    stored = registry.ledger.stores
    await until(lambda: not stored.total_bytes, DEADLINE_S, "what waited is written")


def bytes_on_disk(places: StorePlaces) -> bytes:
    """Every byte of every file of both stores."""
    folders = [Path(each) for each in (places.memory, places.disk) if each]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return b"".join(file.read_bytes() for file in files)
