"""A config file that changes is noticed, whatever way it comes about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tidegate.gateway import config_watch
from tidegate.gateway.config_watch import changes, look

LIMIT_S = 20.0


def rewritten(path: Path) -> None:
    path.write_text("limits.idle_s = 7")


def made(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("limits.idle_s = 6")


def replaced(path: Path) -> None:
    beside = path.with_name(".config.toml.swp")
    beside.write_text("limits.idle_s = 7")
    beside.replace(path)


def moved_away_and_written(path: Path) -> None:
    path.rename(path.with_name("config.toml~"))
    path.write_text("limits.idle_s = 7")


def removed(path: Path) -> None:
    path.unlink()


def opened_to_us(path: Path) -> None:
    path.chmod(0o600 if path.stat().st_mode & 0o077 else 0o644)


def directory_made_again(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.mkdir()
    path.write_text("limits.idle_s = 7")


def linked_elsewhere(path: Path) -> None:
    target = path.parent.parent / "dotfiles.toml"
    target.write_text("limits.idle_s = 7")
    beside = path.with_name("config.toml.tmp")
    beside.symlink_to(target)
    beside.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        replaced,
        moved_away_and_written,
        removed,
        opened_to_us,
        directory_made_again,
        linked_elsewhere,
    ],
)
async def test_a_file_that_changes_is_noticed(tmp_path: Path, change: Callable[[Path], None]):
    """Editors write in place, rename over it or move it away first; people remove and link."""
    path = tmp_path / "tidegate" / "config.toml"
    path.parent.mkdir()
    path.write_text("")
    async with aclosing(changes(path, 0.01)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)  # as it is at first
        change(path)
        await anext(watch)


async def test_a_file_that_appears_is_noticed_with_its_directories(tmp_path: Path):
    """Nothing of its path need be there at the start."""
    path = tmp_path / "not" / "yet" / "config.toml"
    async with aclosing(changes(path, 0.01)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
        path.parent.mkdir(parents=True)
        path.write_text("")
        await anext(watch)


async def test_what_a_link_leads_to_is_noticed(tmp_path: Path):
    """Stow and home-manager link the file, or the whole directory, from elsewhere."""
    target = tmp_path / "dotfiles" / "tidegate" / "config.toml"
    target.parent.mkdir(parents=True)
    target.write_text("")
    (tmp_path / "etc").symlink_to(target.parent)
    path = tmp_path / "etc" / "config.toml"
    async with aclosing(changes(path, 0.01)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
        target.write_text("limits.idle_s = 7")
        await anext(watch)
        other = tmp_path / "store"
        other.mkdir()
        (other / "config.toml").write_text("")
        (tmp_path / "etc.new").symlink_to(other)
        (tmp_path / "etc.new").replace(tmp_path / "etc")
        await anext(watch)


async def test_a_config_map_that_is_swapped_is_noticed(tmp_path: Path):
    """Kubernetes renames a link `..data`, and touches neither the file nor its directory entry."""
    for day in ("..monday", "..tuesday"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "config.toml").write_text(f"# {day}")
    (tmp_path / "..data").symlink_to("..monday")
    path = tmp_path / "config.toml"
    path.symlink_to("..data/config.toml")
    async with aclosing(changes(path, 0.01)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
        (tmp_path / "..data_tmp").symlink_to("..tuesday")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        await anext(watch)


def test_what_lies_beside_it_is_no_change(tmp_path: Path) -> None:
    """Neither backups nor a reading of the file itself are taken for a change."""
    path = tmp_path / "config.toml"
    path.write_text("")
    before = look(path)
    (tmp_path / "config.toml~").write_text("")
    path.read_text()
    assert look(path) == before


async def test_a_file_is_told_once_and_when_it_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While it is still being written nothing is told; what stays as it is is told no more."""
    script: Iterator[tuple[int, ...]] = iter(
        [(1,), (2,), (3,), (3,), (3,), (3,), (4,), (3,), (3,), (5,), (5,)]
    )
    looks = 0

    def scripted(_: Path) -> tuple[int, ...]:
        nonlocal looks
        looks += 1
        return next(script)

    async def always(*_: object) -> AsyncIterator[None]:
        while True:
            yield

    monkeypatch.setattr(config_watch, "look", scripted)
    monkeypatch.setattr(config_watch, "_stirs", always)
    async with aclosing(changes(tmp_path, 0.0)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
        assert looks == 4
        await anext(watch)
        assert looks == 11


async def noticed(watch: AsyncIterator[None], change: Callable[[], None]) -> None:
    """Changes the file until that is noticed, for its watch may not be there yet."""
    waits = asyncio.ensure_future(anext(watch))
    while not waits.done():
        change()
        await asyncio.wait([waits], timeout=1.0)
    await waits


async def test_an_event_is_enough(tmp_path: Path):
    """The watcher does not wait for the look that comes anyway."""
    path = tmp_path / "tidegate" / "config.toml"
    async with aclosing(changes(path, 3600.0)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
        await noticed(watch, lambda: made(path))
        await noticed(watch, lambda: replaced(path))


async def test_without_events_a_look_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A system that is out of watches says so once, and the file is looked at all the same."""

    def refuse(*_: object, **__: object) -> Iterator[object]:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(config_watch, "watch", refuse)
    path = tmp_path / "config.toml"
    path.write_text("")
    async with aclosing(changes(path, 0.01)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
        rewritten(path)
        await anext(watch)


async def test_a_path_that_no_system_can_look_at_is_a_state_like_another(tmp_path: Path):
    """A name that is too long is no reason to end the watcher."""
    path = tmp_path / ("x" * 300) / "config.toml"
    assert config_watch.directories(path) == {tmp_path}
    async with aclosing(changes(path, 0.01)) as watch, asyncio.timeout(LIMIT_S):
        await anext(watch)
