"""A process is known again, and no other is taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.machine import wait_until
from tidegate.machine import lifetime
from tidegate.machine.lifetime import is_alive, own_lifetime

TELL = "from tidegate.machine.lifetime import own_lifetime as o; print(o(), flush=True); input()"


def test_this_process_lives() -> None:
    """And is named the same each time, with its id in it."""
    assert own_lifetime() == own_lifetime()
    assert is_alive(own_lifetime())
    assert own_lifetime().split("/")[1] == str(os.getpid())


def test_another_process_lives_until_it_ends() -> None:
    """One that has ended and is not yet reaped is dead."""
    child = subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        name = child.stdout.readline().strip()
        assert is_alive(name)
        child.stdin.write("\n")
        child.stdin.close()
        wait_until(lambda: not is_alive(name))
    assert not is_alive(name)


@pytest.mark.skipif(sys.platform != "linux", reason="of /proc")
def test_a_number_that_was_given_out_again_is_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its start; and after the computer started anew, nothing of before lives."""
    boot, pid, started = own_lifetime().split("/")
    assert len(boot) == 16
    assert not is_alive(f"{boot}/{pid}/{int(started) - 1}")
    assert not is_alive(f"{boot}/{2**22 + 1}/{started}")
    other = tmp_path / "boot_id"
    other.write_text("another-start-of-the-computer\n")
    mine = own_lifetime()
    monkeypatch.setattr(lifetime, "_BOOT_ID", other)
    assert not is_alive(mine)
    assert is_alive(own_lifetime())
    monkeypatch.setattr(lifetime, "_BOOT_ID", tmp_path / "missing")
    assert own_lifetime().startswith(f"/{pid}/")


@pytest.mark.parametrize("name", ["", "/", "a/b/c", "x/1/", "x/-1/5", "x/²/5", "x/1" + "0" * 30])
def test_what_names_no_process_is_dead(name: str) -> None:
    """It was never made by `own_lifetime`."""
    assert not is_alive(name)


@pytest.mark.skipif(sys.platform != "linux", reason="of /proc")
def test_what_cannot_be_found_out_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is still written must not be ended."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(f"{path} may not be read")

    name = own_lifetime()
    monkeypatch.setattr(lifetime.procfile, "read_whole", refuse)
    assert is_alive(name)
    with pytest.raises(PermissionError):
        own_lifetime()
