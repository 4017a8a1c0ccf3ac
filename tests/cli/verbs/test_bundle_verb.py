"""`tidegate bundle`: what it asks, what it prints, and where it puts a copy."""

from __future__ import annotations

import json
import os
import stat

import pytest


@pytest.fixture
def written(watchdog, tidegate):
    """A bundle that the running one is about to answer with."""
    path = tidegate.state_dir / "20261122T234512Z-bundle-asked-for.json"
    path.write_text('{"format": 1}\n')
    watchdog.will("bundle", {"path": str(path), "bytes": 2048, "later": "fields are skipped"})
    return path


def test_it_prints_where_the_bundle_is(tidegate, written):
    """And how large it is."""
    assert tidegate("bundle") == (0, f"{written}, 2 KiB\n", "")


def test_json_is_for_programs(tidegate, written):
    """Path and bytes."""
    code, out, _ = tidegate("bundle", "--json")
    assert code == 0
    assert json.loads(out) == {"path": str(written), "bytes": 2048}


def test_a_copy_is_for_its_owner_alone(tidegate, written, tmp_path):
    """Also where others could read the file that was there."""
    former = os.umask(0)
    try:
        copy = tmp_path / "copy.json"
        copy.write_text("something longer than a bundle")
        code, out, _ = tidegate("bundle", "--output", str(copy))
    finally:
        os.umask(former)
    assert (code, out) == (0, f"{copy}, 2 KiB\n")
    assert copy.read_text() == written.read_text()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_a_directory_takes_the_copy_under_its_name(tidegate, written, tmp_path):
    """As cp does it."""
    directory = tmp_path / "mails"
    directory.mkdir()
    code, _, _ = tidegate("bundle", "--output", str(directory))
    assert code == 0
    assert (directory / written.name).read_text() == written.read_text()


def test_a_place_that_takes_no_copy_is_wrong_usage(tidegate, written, tmp_path):
    """The bundle is there all the same, and the error says where."""
    code, out, err = tidegate("bundle", "--output", str(tmp_path / "nowhere" / "x.json"))
    assert (code, out) == (64, "")
    assert "No such file or directory" in err
    assert str(written) in err


def test_a_bundle_that_was_taken_away_is_said(tidegate, written, tmp_path):
    """Eight newer ones may have come meanwhile."""
    written.unlink()
    code, _, err = tidegate("bundle", "--output", str(tmp_path / "x.json"))
    assert code == 1
    assert str(written) in err
    assert not (tmp_path / "x.json").exists()


def test_a_bundle_that_could_not_be_written_is_exit_1(tidegate, watchdog):
    """With the daemon's own words."""
    watchdog.will("bundle", error="the bundle could not be written; the log says why")
    code, out, err = tidegate("bundle")
    assert (code, out) == (1, "")
    assert "the log says why" in err


def test_without_a_running_tidegate_it_is_exit_69(tidegate):
    """Only the one that runs knows how it is."""
    code, out, err = tidegate("bundle")
    assert (code, out) == (69, "")
    assert "not running" in err
