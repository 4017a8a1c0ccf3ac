"""What a watchdog leaves to the program that it becomes, and what cannot be taken up."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from tidegate.core.fleet.lifecycle import Fleet
from tidegate.watchdog.control.commands import KeptClients
from tidegate.watchdog.control.status import Totals
from tidegate.watchdog.upgrade import upgrade
from tidegate.watchdog.upgrade.state import UpgradeError, UpgradeState, read


def as_file(tmp_path: Path, value: object) -> int:
    file = tmp_path / "state"
    file.write_bytes(msgspec.json.encode(value))
    return os.open(file, os.O_RDONLY)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"format": 99, "protocol": 1, "version": "9.0"}, "another format; restart instead"),
        ({"format": 1, "protocol": 99, "version": "9.0"}, "speak protocol 99"),
        ({"format": 1, "protocol": 1, "version": "9.0"}, "cannot be read"),
        ("rubbish", "cannot be read"),
    ],
)
def test_what_cannot_be_taken_up_is_refused(tmp_path: Path, value: object, why: str) -> None:
    """Another format, another protocol, or nothing that makes sense: the reason is told."""
    fd = as_file(tmp_path, value)
    try:
        with pytest.raises(UpgradeError, match=why):
            read(fd)
    finally:
        os.close(fd)


def test_a_program_that_is_not_there_is_no_upgrade() -> None:
    """execve failing leaves signals and descriptors as they were."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(UpgradeError, match="cannot be executed"):
        upgrade.become(["/nonexistent/tidegate"], _estate(), {})
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def _estate() -> UpgradeState:
    reading, writing = os.pipe()
    os.close(reading)
    return UpgradeState(
        started_s=0.0,
        serves=True,
        fleet=Fleet(),
        workers=[],
        listeners=[],
        pid_fd=writing,
        control_fd=writing,
        clients=KeptClients(),
        config=None,
        totals=Totals(),
    )
