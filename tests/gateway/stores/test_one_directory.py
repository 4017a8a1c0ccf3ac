"""Both places may be one directory: what is kept there is not what is to be removed elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.stores.store_rig import ANSWERS, a_row, entry, stores_in
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.settings import History, Journal


def databases(folder: Path) -> list[Path]:
    """Those of both stores."""
    return list(folder.glob("*/*.db"))


@pytest.mark.parametrize("place", ["auto", "memory", "disk"])
async def test_a_new_worker_keeps_what_is_there(tmp_path: Path, place: str) -> None:
    """It opens the file that the one before it wrote, wherever the settings want it."""
    journal = Journal(keep=ANSWERS.keep, place=place)
    one = StorePlaces(memory=str(tmp_path), disk=str(tmp_path))
    for generation in (1, 2, 3):
        async with stores_in(tmp_path) as rig:
            rig.stores.configure(journal, History(), one)
            await rig.stores.open()
            if generation == 1:
                rig.stores.put([entry()], [a_row()])
                await rig.stores.flush(5)
            assert [run.id for run in await rig.stores.list_runs(None, 10)] == ["run_1"]
            assert [row.id for row in await rig.stores.list_rows(None, 10)] == ["run_1"]
    async with stores_in(tmp_path) as rig:
        rig.stores.configure(Journal(keep="off"), History(max_rows=0), one)
        await rig.stores.open()
        assert not databases(tmp_path)
