"""What is put into the stores comes back as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.stores.store_rig import (
    NOW,
    OWNER,
    a_row,
    a_run,
    entry,
    events,
    stores_in,
    under_way,
)
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.usage import TokenUsage
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import MIB, History, Journal, Price
from tidegate.gateway.stores.store_thread import StoreUnavailable
from tidegate.gateway.stores.stores import Kept


async def test_a_run_is_found_as_it_was_put(tmp_path: Path) -> None:
    """At once: what waits is written before it is read."""
    async with stores_in(tmp_path) as rig:
        run = a_run(next_seq=3, response_id="resp_1", reason="it broke", code="idle_timeout")
        rig.stores.put([entry(events=events(0, 3), count=3)._replace(run=run)], [])
        found = await rig.stores.find("run_1", OWNER)
        assert found is not None
        assert found.run == run
        assert found.events == events(0, 3)
        assert not found.is_alive
        assert await rig.stores.find("run_1", None) == found
        assert await rig.stores.find("run_1", "another") is None
        assert await rig.stores.find("run_2", None) is None
        assert await rig.stores.find_response("resp_1", OWNER) == found
        assert await rig.stores.find_response("resp_1", "another") is None
        assert await rig.stores.list_runs(OWNER, 10) == [run]
        assert await rig.stores.list_runs("another", 10) == []


async def test_pieces_are_one_answer_and_joined_at_the_end(tmp_path: Path) -> None:
    """A run is found while it goes on, with all that was written until then."""
    async with stores_in(tmp_path) as rig:
        for n in range(5):
            rig.stores.put([under_way(events=events(2 * n, 2), first_seq=2 * n, count=2)], [])
            found = await rig.stores.find("run_1", None)
            assert found is not None
            assert (found.is_alive, found.run.state) == (True, "streaming")
            assert (found.run.first_seq, found.run.next_seq) == (0, 2 * n + 2)
            assert found.events == events(0, 2 * n + 2)
        journal = rig.stores._journal
        assert await journal.ask(lambda store: store.database.first("SELECT count(*) FROM events"))
        rig.stores.put([entry(events=events(10, 1), first_seq=10, count=1)], [])
        found = await rig.stores.find("run_1", None)
        assert found is not None
        assert found.events == events(0, 11)
        count = "SELECT count(*) FROM events"
        assert await journal.ask(lambda store: store.database.first(count)) == 1


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_gap_drops_what_was_before(tmp_path: Path, at_once: bool) -> None:
    """So an answer that is read back never lacks a part in its midst, or its end."""
    async with stores_in(tmp_path) as rig:
        for put in (
            under_way(events=events(0, 2), count=2),
            under_way(events=events(5, 2), first_seq=5, count=2),
        ):
            rig.stores.put([put], [])
            if not at_once:
                await rig.stores.flush(5)
        found = await rig.stores.find("run_1", None)
        assert found is not None
        assert (found.run.first_seq, found.run.next_seq, found.events) == (5, 7, events(5, 2))
        rig.stores.put([entry(first_seq=9)], [])  # two more were lost, and it is over
        found = await rig.stores.find("run_1", None)
        assert found is not None
        assert (found.run.first_seq, found.run.next_seq, found.events) == (9, 9, b"")
        assert found.run.state == "completed"


async def test_what_memory_keeps_no_more_goes_from_the_journal(tmp_path: Path) -> None:
    """Whole pieces: a run of hours takes no more there than its window."""
    async with stores_in(tmp_path) as rig:
        for n in range(4):
            rig.stores.put([under_way(events=events(2 * n, 2), first_seq=2 * n, count=2)], [])
            await rig.stores.flush(5)
        rig.stores.put([under_way(events=events(8, 2), first_seq=8, count=2, next_seq=10)], [])
        trimmed = under_way(first_seq=10)
        rig.stores.put([trimmed._replace(run=trimmed.run._replace(first_seq=5))], [])
        found = await rig.stores.find("run_1", None)
        assert found is not None
        assert (found.run.first_seq, found.run.next_seq, found.events) == (4, 10, events(4, 6))


async def test_rows_are_listed_and_summed(tmp_path: Path) -> None:
    """By what was asked for; a cost only where there is a price."""
    async with stores_in(tmp_path) as rig:
        nothing = TokenUsage(None, None, None, None)
        rows = [
            a_row("run_1"),
            a_row("run_2", asked="large", token="phone", owner="another", began=NOW + 5),
            a_row("run_3", outcome="failed", code="idle_timeout", usage=nothing),
        ]
        rig.stores.put([], rows)
        assert await rig.stores.list_rows(None, 10) == rows[::-1]
        assert await rig.stores.list_rows("another", 10) == [rows[1]]
        prices = {"small": Price(input=1.0, output=2.0, cached=0.5)}
        small, large = await rig.stores.usage("model", 0, None, prices)
        if small.key == "large":
            small, large = large, small
        assert (small.runs, small.failed, small.unknown, small.input, small.output) == (
            2, 1, 1, 10, 20,
        )  # fmt: skip
        assert small.cost == pytest.approx((6 * 1.0 + 4 * 0.5 + 20 * 2.0) / 1e6)
        assert (large.cost, large.unpriced, large.last) == (None, 0, NOW + 5)
        (both,) = await rig.stores.usage("format", 0, None, prices)
        assert (both.cost, both.unpriced, both.cached) == (small.cost, 1, 8)
        assert (both.seconds, both.bytes) == (5.0, 6000)  # one has a clock that went back
        (phone,) = await rig.stores.usage("token", NOW + 1, None, prices)
        assert phone.key == "phone"
        assert [line.key for line in await rig.stores.usage("token", 0, "another", {})] == ["phone"]


async def test_a_row_is_written_once(tmp_path: Path) -> None:
    """Two workers may both tell of a run that a third one left."""
    async with stores_in(tmp_path) as rig:
        rig.stores.put([], [a_row()])
        rig.stores.put([], [a_row(outcome="failed")])
        assert await rig.stores.list_rows(None, 10) == [a_row()]


async def test_files_are_private(tmp_path: Path) -> None:
    """Directories 0700 and files 0600, with what SQLite puts beside them."""
    async with stores_in(tmp_path) as rig:
        rig.stores.put([entry()], [a_row()])
        await rig.stores.flush(5)
        assert len(rig.files()) == 6
        for path in rig.files():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_what_is_forgotten_is_in_no_byte(tmp_path: Path) -> None:
    """Neither in the files nor in what SQLite keeps beside them."""
    async with stores_in(tmp_path) as rig:
        names = [f"canary_{n}" for n in range(50)]
        rig.stores.put([under_way(name, b"", model=f"of_{name}") for name in names], [])
        rig.stores.put([entry(name, model=f"of_{name}") for name in names], [])
        rig.stores.put([under_way("run_on")], [a_row(name) for name in names])
        await rig.stores.flush(5)
        assert b"canary_7" in rig.bytes()
        assert await rig.stores.forget("canary_7", "another", rows=True) == 0
        assert await rig.stores.forget("canary_7", OWNER, rows=False) == 1
        assert b"canary_7" not in rig.journal_file.read_bytes()
        assert b"canary_7" in rig.bytes()
        assert await rig.stores.forget("canary_7", None, rows=True) == 1
        assert b"canary_7" not in rig.bytes()
        assert b"canary_8" in rig.bytes()
        assert await rig.stores.forget(None, None, rows=True) == 49
        assert b"canary" not in rig.bytes()
        assert await rig.stores.find("run_on", None) is not None


async def test_ends_have_no_text(tmp_path: Path) -> None:
    """Not even that which a former setting kept."""
    text = os.urandom(400)  # which deflating leaves as it is
    async with stores_in(tmp_path) as rig:
        rig.stores.put([entry(events=text, count=1)], [])
        await rig.stores.flush(5)
        assert text[:200] in rig.bytes()
        rig.stores.configure(Journal(keep="ends", place="memory"), History(), rig.places)
        await rig.stores.open()
        rig.stores.put([entry("run_2", events=text, count=1)], [])
        for run_id in ("run_1", "run_2"):
            found = await rig.stores.find(run_id, None)
            assert found is not None
            assert (found.events, found.run.first_seq, found.run.next_seq) == (b"", 1, 1)
        assert text[:20] not in rig.bytes()
        assert not rig.stores.keeps_answers


async def test_off_removes_what_is_there(tmp_path: Path) -> None:
    """Also from the place where a former setting kept it."""
    async with stores_in(tmp_path) as rig:
        for journal in (Journal(), Journal(place="disk"), Journal(keep="off")):
            rig.stores.configure(journal, History(), rig.places)
            await rig.stores.open()
            rig.stores.put([entry()], [a_row()])
            await rig.stores.flush(5)
            places = [path.parent.parent.name for path in rig.files() if path.name == "runs.db"]
            expected = {"auto": "memory", "disk": "disk"}[journal.place]
            assert places == ([] if journal.keep == "off" else [expected])
        assert not rig.stores.keeps_runs
        assert await rig.stores.find("run_1", None) is None
        rig.stores.configure(Journal(keep="off"), History(max_rows=0), rig.places)
        await rig.stores.open()
        assert rig.files() == []
        with pytest.raises(StoreUnavailable, match="the history is off"):
            await rig.stores.usage("token", 0, None, {})
        assert [state.keep for state in rig.stores.states()] == ["off", "off"]


BOTH, DISK = StorePlaces(memory="/m", disk="/d"), StorePlaces(disk="/d")


@pytest.mark.parametrize(
    ("settings", "places", "kept"),
    [
        (Journal(), BOTH, ("answers", "memory")),
        (Journal(), DISK, ("ends", "disk")),
        (Journal(place="disk"), BOTH, ("ends", "disk")),
        (Journal(keep="ends"), BOTH, ("ends", "memory")),
        (Journal(keep="answers"), DISK, ("answers", "disk")),
        (Journal(place="memory"), DISK, ("ends", "disk")),
        (Journal(keep="answers", place="memory"), DISK, ("off", "memory")),
        (Journal(keep="off"), BOTH, ("off", "memory")),
        (Journal(), StorePlaces(), ("off", "disk")),
    ],
)
def test_text_goes_to_a_disk_only_when_asked(
    settings: Journal, places: StorePlaces, kept: tuple[str, str]
) -> None:
    """What cannot be kept as the settings want says why."""
    decided = Kept.of(settings, places)
    assert decided[:2] == kept
    assert (decided.why is not None) == (kept[0] == "off" and settings.keep != "off")


async def test_what_waits_is_in_the_ledger_and_bounded(tmp_path: Path) -> None:
    """Beyond 3 MiB its events are dropped, and counted; what was written is charged no more."""
    async with stores_in(tmp_path) as rig:
        text = bytes(512 * 1024)
        rig.stores.put([entry(f"run_{n}", text, 0, 1) for n in range(20)], [])
        charged = rig.ledger.entries[Entry.STORED]
        assert 2 * MIB < charged <= 3 * MIB
        rig.stores.put([], [a_row(f"row_{n}") for n in range(1000)])  # answers leave them room
        await rig.written()
        assert rig.stores.states()[1].dropped_bytes == 0
        journal, _ = rig.stores.states()
        assert journal.dropped_bytes > 7 * MIB
        assert journal.dropped_bytes % len(text) == 0
        assert journal.dropped_bytes + journal.written_bytes == 20 * (len(text) + 1029)
        assert len(await rig.stores.list_runs(None, 100)) == 20
        found = [await rig.stores.find(f"run_{n}", OWNER) for n in range(20)]
        kept = [each.events == text for each in found if each is not None and each.events]
        assert kept == [True] * (journal.written_bytes // len(text))
        assert rig.ledger.entries[Entry.STORED] == 0
