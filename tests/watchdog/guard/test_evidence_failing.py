"""Every system call that evidence makes may fail; the watchdog goes on."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from watchdog.guard.test_evidence import Rig

pytestmark = pytest.mark.processes

CALLS = ("open", "read", "write", "fsync", "stat", "fstat", "unlink", "rename", "mkdir", "chmod",
         "listdir", "scandir", "getloadavg", "replace")  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.evidence.close()


class FailsAt:
    """Lets the Nth of these system calls fail, whichever it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
        self.left, self.code = number, code
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self.wrap(builtins.open))

    def wrap(self, call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))
            return call(*arguments, **named)

        return counted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_whichever_call_fails_nothing_comes_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Either the bundle is whole, or who asked is told None; and the next one is written."""
    outcomes = set()
    number = 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            calls = FailsAt(patch, number, code)
            rig.gather()
            rig.answer(1)
            rig.answer(2)
            rig.wait_written()
        outcomes.add(rig.told[-1] is not None)
        assert len(rig.told) == number
        assert not list((rig.state_dir / "bundles").glob(".unfinished-2*")) or rig.told[-1] is None
        if calls.left > 0:  # there were fewer calls than that
            break
    assert number > 20
    assert outcomes == {True, False}
    rig.evidence.gather_now("kill", "hung")
    rig.wait_written()
    names = sorted(path.name for path in (rig.state_dir / "bundles").iterdir())
    assert names[-1].endswith("-kill-hung.json")
    assert len(names) <= 8
