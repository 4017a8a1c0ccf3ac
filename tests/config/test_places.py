"""Where things are kept, on each kind of computer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.config import places
from tidegate.config.places import PlacesError


@pytest.fixture(autouse=True)
def etc(tmp_path, monkeypatch):
    """A stand-in for /etc/tidegate that is not there unless the test makes it."""
    directory = tmp_path / "etc"
    monkeypatch.setattr(places, "SYSTEM_CONFIG_DIR", directory)
    monkeypatch.setattr(places, "MAC_SYSTEM_DIR", tmp_path / "support")
    return directory


def find(environ: dict[str, str], *, platform: str = "linux", uid: int = 4_000_000, **flags: Path):
    """Places for a user whom this computer does not know."""
    return places.find(environ={"HOME": "/h", **environ}, platform=platform, uid=uid, **flags)


def test_xdg_defaults_are_under_the_home_directory():
    """Without any variable the XDG defaults hold, and sockets go under the state directory."""
    found = find({})
    assert found.config_file == Path("/h/.config/tidegate/config.toml")
    assert found.named_config is None
    assert found.state_dir == Path("/h/.local/state/tidegate")
    assert found.runtime_dir == Path("/h/.local/state/tidegate/run")
    assert found.log_file == Path("/h/.local/state/tidegate/tidegate.log")


def test_xdg_variables_are_followed(tmp_path):
    """XDG variables move each directory; the runtime one must belong to the user."""
    environ = {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": str(tmp_path)}
    found = find(environ, uid=tmp_path.stat().st_uid)
    assert found.config_file == Path("/c/tidegate/config.toml")
    assert found.state_dir == Path("/s/tidegate")
    assert found.runtime_dir == tmp_path / "tidegate"
    assert find(environ).runtime_dir == Path("/s/tidegate/run")


def test_relative_xdg_variable_counts_as_none():
    """The XDG rules say that a relative path is ignored."""
    assert find({"XDG_STATE_HOME": "s"}).state_dir == Path("/h/.local/state/tidegate")


def test_root_with_a_system_config_uses_the_system_places(etc):
    """Root on a computer with /etc/tidegate gets the system's places; without it, its own."""
    assert find({}, uid=0).state_dir == Path("/h/.local/state/tidegate")
    etc.mkdir()
    found = find({}, uid=0)
    assert found.config_file == etc / "config.toml"
    assert found.state_dir == Path("/var/lib/tidegate")
    assert found.runtime_dir == Path("/run/tidegate")


def test_mac_has_its_own_places():
    """On macOS things go under Library, and the log with the other logs."""
    found = find({"XDG_RUNTIME_DIR": "/x"}, platform="darwin")
    support = Path("/h/Library/Application Support/tidegate")
    assert found.config_file == support / "config.toml"
    assert found.state_dir == support
    assert found.runtime_dir == support / "run"
    assert found.log_file == Path("/h/Library/Logs/tidegate/tidegate.log")


def test_root_on_a_mac_means_the_service_of_the_system(tmp_path):
    """`sudo` keeps HOME there; its verbs go to the installed service, not into that home."""
    support = tmp_path / "support"
    own = Path("/h/Library/Application Support/tidegate")
    assert find({}, platform="darwin", uid=0).state_dir == own
    support.mkdir()
    assert find({}, platform="darwin").state_dir == own
    found = find({}, platform="darwin", uid=0)
    assert found.config_file == support / "config.toml"
    assert found.state_dir == support / "state"
    assert found.runtime_dir == support / "run"
    assert found.log_file == Path("/Library/Logs/tidegate/tidegate.log")


def test_flag_wins_over_environment_wins_over_default():
    """A flag stands above TIDEGATE_*, which stands above the usual place."""
    environ = {
        "TIDEGATE_CONFIG": "/e/c.toml",
        "TIDEGATE_STATE_DIR": "/e/s",
        "TIDEGATE_RUNTIME_DIR": "/e/r",
    }
    found = find(environ)
    assert found.named_config == Path("/e/c.toml")
    assert (found.state_dir, found.runtime_dir) == (Path("/e/s"), Path("/e/r"))
    assert found.log_file == Path("/e/s/tidegate.log")
    flags = {"config": Path("/f/c"), "state_dir": Path("/f/s"), "runtime_dir": Path("/f/r")}
    found = find(environ, **flags)
    assert (found.config_file, found.state_dir, found.runtime_dir) == tuple(flags.values())


def test_relative_flags_become_absolute(tmp_path, monkeypatch):
    """A relative flag means the directory in which the command was given."""
    monkeypatch.chdir(tmp_path)
    assert find({}, state_dir=Path("s")).state_dir == tmp_path / "s"


def test_runtime_directory_too_long_for_sockets_is_refused():
    """A path that a Unix socket cannot have is refused, with the setting that helps."""
    room = places.MAX_SOCKET_PATH_BYTES - len("/worker-99999.sock")
    fits = Path("/" + "r" * (room - 1))
    assert find({}, runtime_dir=fits).runtime_dir == fits
    with pytest.raises(PlacesError, match=r"too long by 1 bytes.*--runtime-dir"):
        find({}, runtime_dir=Path(f"{fits}r"))
    with pytest.raises(PlacesError, match="too long"):
        find({}, runtime_dir=Path("/" + "ü" * 50))


def test_private_directories_are_made_with_their_parents(tmp_path):
    """A directory is made for its owner only, and made again without complaint."""
    directory = tmp_path / "a" / "b"
    places.make_private(directory)
    places.make_private(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_directory_that_others_can_write_into_is_refused(tmp_path):
    """A user who can write into the directory could replace the tokens."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(PlacesError, match="chmod 700"):
        places.make_private(directory)


def test_file_in_the_directorys_place_is_a_plain_error(tmp_path):
    """A file where the directory should be is named in the error."""
    (tmp_path / "file").touch()
    with pytest.raises(PlacesError, match="file"):
        places.make_private(tmp_path / "file")
