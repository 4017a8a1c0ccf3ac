"""Parked in virtual time: why it is told, when it is tried again, and what a mended config does."""

from __future__ import annotations

import os
import socket

import pytest

from tidegate.core.protocol import worker as msg
from tidegate.watchdog import parking
from tidegate.watchdog.parking import PARK_RETRY_S
from watchdog.world import World


def test_parked_daemon_serves_once_the_config_is_mended(world: World) -> None:
    """With a bad config it stays up, says why, and starts when told that it is mended."""
    world.config.write_text("{")
    world.start(park=True, serves=False)
    status = world.status()
    assert status["state"] == "parked"
    assert str(world.config) in status["reason"]
    assert not world.ask("reload").ok
    world.write()
    assert world.ask("reload").ok
    assert world.ready
    assert world.serving.number == 2  # worker 1 only said why
    assert world.status()["reason"] is None


def test_a_worker_says_over_http_why_it_is_parked(world: World) -> None:
    """Its config has the reason; the terminal is told nothing of it."""
    world.config.write_text("{")
    world.start(park=True, serves=False)
    world.until(lambda: world.serving, "its worker says why")
    assert str(world.config) in (world.workers[1].last(msg.Configure).parked or "")
    assert not world.ready


def test_a_mended_config_is_found_without_being_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read every few seconds, and a mistake that stays is logged once."""
    world.config.write_text("{")
    world.start(park=True, serves=False)
    world.wait(12.5 * PARK_RETRY_S)
    told = [record for record in caplog.records if record.name == parking.__name__]
    assert len(told) == 1
    assert list(world.workers) == [1]
    world.write()
    mended_s = world.now_s
    world.until(lambda: world.ready, "it serves")
    assert world.now_s - mended_s < PARK_RETRY_S + 1.5


def test_an_address_that_becomes_free_is_taken(world: World) -> None:
    """A daemon that parks waits for an address that another program has, without a worker."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        world.write(listen=[f"127.0.0.1:{other.getsockname()[1]}"])
        world.start(park=True, serves=False)
        world.wait(3 * PARK_RETRY_S)
        assert world.workers == {}
        assert "another program listens there" in world.status()["reason"]
    free_s = world.now_s
    world.until(lambda: world.ready, "it serves")
    assert world.now_s - free_s < PARK_RETRY_S + 1.5


def test_a_parked_daemon_can_be_stopped(world: World) -> None:
    """It ends with 0, and tries no more."""
    world.config.write_text("{")
    world.start(park=True, serves=False)
    world.until(lambda: world.serving, "its worker says why")
    assert world.ask("stop", wait=False).ok
    world.write()
    assert world.run() == os.EX_OK
    assert list(world.workers) == [1]


@pytest.mark.parametrize(
    ("listen", "code"), [("127.0.0.1:x", os.EX_CONFIG), (None, os.EX_TEMPFAIL)]
)
def test_one_that_does_not_park_ends_before_it_begins(
    world: World, listen: str | None, code: int
) -> None:
    """With 78 for a mistake, and with 75 for an address that may become free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        world.write(listen=[listen or f"127.0.0.1:{other.getsockname()[1]}"])
        world.start(serves=False)
        assert world.run() == code
    assert world.workers == {}
