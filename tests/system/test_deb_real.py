"""The Debian package, built here, on a computer of its own with a real systemd."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fakes import private_systemd
from tidegate import __version__
from tidegate.gateway.page.assets import FILES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
NEWER = "99.1.0"
FORMER = "68e97ff"  # the last commit of 0.1.0, whose package had the config as a conffile
SYSTEM_PYTHON = "/usr/bin/python3"


def missing() -> str | None:
    """Why it cannot be tried here."""
    if shutil.which("dpkg-deb") is None:
        return "needs dpkg-deb"
    probe = [SYSTEM_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(probe, check=False).returncode:
        return f"needs {SYSTEM_PYTHON} of 3.11 or newer"
    if shutil.which("adduser") is None:
        return "needs adduser"
    return private_systemd.missing()


def build(tree: Path, output: Path) -> Path:
    """The package of that tree."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [sys.executable, str(tree / "packaging/deb/build.py"), "--output", str(output)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


def newer_tree(place: Path) -> Path:
    """This tree in another directory, as another version, and with another example of a config."""
    kept = ("daemon", "docs", "packaging", "systemd", "*.md", "LICENSE", "*.toml", "*.lock")
    for source in (path for pattern in kept for path in ROOT.glob(pattern)):
        if source.is_dir():
            shutil.copytree(source, place / source.name)
        else:
            place.mkdir(exist_ok=True)
            shutil.copy(source, place)
    init = place / "daemon/tidegate/__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{NEWER}"', init.read_text()))
    example = place / "packaging/config.toml"
    example.write_text(f"# Of {NEWER}.\n{example.read_text()}")
    return place


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of this version, and of a newer one."""
    if reason := missing():
        pytest.skip(reason)
    output = tmp_path_factory.mktemp("dist")
    return build(ROOT, output), build(newer_tree(tmp_path_factory.mktemp("tree")), output)


def on_a_computer(share: Path, *packages: Path) -> dict[str, Any]:
    """What was seen on a computer where both were installed, one after the other."""
    for file in (*packages, HERE / "inside_deb.py"):
        shutil.copy(file, share)
    done = subprocess.run(
        [str(HERE / "private_root.sh"), SYSTEM_PYTHON, "-I", "/mnt/inside_deb.py"]
        + [f"/mnt/{package.name}" for package in packages]
        + [str(ROOT)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PRIVATE_SHARE": str(share)},
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def seen(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen from the installation of this version to the purge of the newer one."""
    return on_a_computer(tmp_path_factory.mktemp("share"), *packages)


@pytest.mark.long
@pytest.mark.timeout(900)
class TestOnAComputer:
    """The package from its installation to its purge."""

    def test_installed_serves_at_once(self, seen: dict[str, Any]) -> None:
        """After `dpkg -i` it serves as its own user, and starts with the computer."""
        assert seen["installed"]["ActiveState"] == "active"
        assert seen["installed"]["UnitFileState"] == "enabled"
        assert seen["user"] == "tidegate"
        assert seen["credentials"] == "drwx------"

    def test_upgrade_cuts_no_stream(self, seen: dict[str, Any]) -> None:
        """An upgrade under 50 streams cuts none, and the same process reports the new version."""
        assert seen["cut"] == []
        assert (seen["first"], seen["second"]) != (NEWER, seen["first"])
        assert seen["second"] == NEWER
        assert seen["upgraded"]["MainPID"] == seen["installed"]["MainPID"]
        assert seen["upgraded"]["NRestarts"] == "0"
        assert seen["kept_config"]

    def test_removal_keeps_what_is_ones_own(self, seen: dict[str, Any]) -> None:
        """Removed, it leaves config and tokens; installed again, it serves again."""
        assert seen["kept_by_remove"]
        assert seen["again"] == {"ActiveState": "active", "UnitFileState": "enabled"}

    def test_purge_leaves_nothing(self, seen: dict[str, Any]) -> None:
        """Purged, it leaves no file, user or unit, and says what it removed."""
        assert not seen["left"], "\n".join(seen["left"])
        assert not seen["lost"], "\n".join(seen["lost"])
        for removed in ("/etc/tidegate", "/var/lib/tidegate", "the user tidegate"):
            assert f"removing {removed}" in seen["purge"]

    def test_same_tree_gives_the_same_bytes(
        self, packages: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """Built again in another directory, the package is the same."""
        again = build(newer_tree(tmp_path / "elsewhere"), tmp_path)
        assert again.read_bytes() == packages[1].read_bytes()

    def test_package_is_in_order(self, packages: tuple[Path, Path], tmp_path: Path) -> None:
        """The configuration is marked as such, documents are packed, and only root can write."""
        subprocess.run(["dpkg-deb", "-R", str(packages[0]), str(tmp_path)], check=True)
        conffiles = (tmp_path / "DEBIAN/conffiles").read_text().split()
        etc = [p for p in (tmp_path / "etc").rglob("*") if p.is_file()]
        assert sorted(conffiles) == sorted(f"/{p.relative_to(tmp_path)}" for p in etc)
        for file in (
            "bash-completion/completions/tidegate",
            "zsh/vendor-completions/_tidegate",
            "fish/vendor_completions.d/tidegate.fish",
            "man/man1/tidegate.1.gz",
            "tidegate/config.toml",
        ):
            assert (tmp_path / "usr/share" / file).is_file()
        assert not list((tmp_path / "usr/lib/tidegate").rglob("site-packages/share"))
        [found] = (tmp_path / "usr/lib/tidegate").rglob("gateway/page/static")
        assert {each.name for each in found.iterdir()} == {*FILES, "uplot.LICENSE"}
        control = (tmp_path / "DEBIAN/control").read_text()
        assert re.search(r"^Depends: python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+\),", control, re.M)
        log = gzip.decompress(
            (tmp_path / "usr/share/doc/tidegate/changelog.Debian.gz").read_bytes()
        ).decode()
        assert log.startswith(f"tidegate ({packages[0].name.split('_')[1]}) ")
        paths = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
        assert not [path for path in paths if path.stat().st_mode & 0o022]
        modules = list((tmp_path / "usr/lib/tidegate").rglob("tidegate/**/*.py"))
        assert modules
        for module in modules:
            assert list((module.parent / "__pycache__").glob(f"{module.stem}.cpython-*.pyc"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_upgrade_from_the_former_version(packages: tuple[Path, Path], tmp_path: Path) -> None:
    """From the package of 0.1.0 no stream is cut, no question asked, and purge leaves nothing."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "archive", FORMER], capture_output=True, check=False
    )
    if found.returncode:
        pytest.skip("needs the repository's history")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(tmp_path / "former", filter="data")
    former = build(tmp_path / "former", tmp_path)
    (tmp_path / "share").mkdir()
    seen = on_a_computer(tmp_path / "share", former, packages[0])
    assert (seen["first"], seen["second"]) == ("0.1.0", __version__)
    assert seen["cut"] == []
    assert seen["upgraded"]["MainPID"] == seen["installed"]["MainPID"]
    assert (seen["kept_config"], seen["kept_by_remove"]) == (True, True)
    assert (seen["left"], seen["lost"]) == ([], [])


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_plain_and_strict(name: str) -> None:
    """Each maintainer script is POSIX sh, stops at an error, and refuses what it does not know."""
    script = ROOT / "packaging/deb" / name
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e\n" in text
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    done = subprocess.run(["sh", str(script), "dance"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"unknown argument" in done.stderr
