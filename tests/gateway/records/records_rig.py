"""What was written of runs, and what a worker that is no more left of one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, Rig
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.ledger import Ledger
from tidegate.core.settings import History, Journal
from tidegate.gateway.stores.journal_values import FoundRun, JournalEntry
from tidegate.gateway.stores.stores import Stores


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


async def leave_behind(places: StorePlaces, run: JournaledRun, events: list[bytes]) -> None:
    """Have a worker that is no more write a run that is under way.

    Workers that really die in the middle of one are in `e2e/test_journal`.
    """
    stores = Stores(asyncio.get_running_loop(), Ledger().stores)
    boot, pid, _ = stores._writer.split("/")
    stores._writer = f"{boot}/{pid}/0"  # who had this number before
    stores.configure(Journal(), History(), places)
    await stores.open()
    stores.put([JournalEntry(run, b"".join(events), run.first_seq, len(events))], [])
    await stores.flush(DEADLINE_S)
    stores.close()


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
