"""`install.sh` with real wheels, in a home of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import private_systemd
from fakes.machine import wait_until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "packaging" / "install.sh"
NEWER = "99.1.0"
SYSTEM_PYTHON = "/usr/bin/python3"
LIMIT_S = 60.0


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Home:
    """A person's home, and install.sh run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = path / ".local/share/tidegate"
        self.bin = path / "bin of mine"
        self.environment = {
            "HOME": str(path),
            "PATH": os.environ["PATH"],
            # The tests share what pip has fetched, and its settings.
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
            "PIP_CACHE_DIR": str(Path.home() / ".cache/pip"),
            "PIP_CONFIG_FILE": os.environ.get(
                "PIP_CONFIG_FILE", str(Path.home() / ".config/pip/pip.conf")
            ),
            "TIDEGATE_CONFIG": str(path / "config.toml"),
            "TIDEGATE_STATE_DIR": str(path / "state"),
            "TIDEGATE_RUNTIME_DIR": str(path / "rt"),
        }
        path.mkdir(exist_ok=True)
        (path / "config.toml").write_text('listen = "127.0.0.1:0"\n')

    def install(self, *words: str | Path, stdin: int = subprocess.DEVNULL) -> tuple[int, str]:
        """The exit code, and all that was said."""
        places = ["--prefix", str(self.prefix), "--bin", str(self.bin), "--python", sys.executable]
        done = subprocess.run(
            ["sh", str(SCRIPT), *places, *map(str, words)],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "tidegate"), *words],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            timeout=120,
        )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Stopped afterwards, whatever runs in it."""
    home = Home(tmp_path / "home")
    yield home
    if (home.prefix / "current").exists():
        home.run("stop")


@pytest.fixture
def fake_wheel(tmp_path: Path) -> Path:
    """A file that looks like a wheel as long as it is not opened."""
    wheel = tmp_path / "tidegate-1.0-py3-none-any.whl"
    wheel.write_bytes(b"no wheel")
    return wheel


def files(path: Path) -> set[Path]:
    return set(path.rglob("*"))


def test_script_is_posix_sh() -> None:
    """The script is good POSIX sh as far as its syntax goes, and says how it is used."""
    assert subprocess.run(["sh", "-n", str(SCRIPT)], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    said = subprocess.run(["sh", str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--sha256 HEX" in said.stdout
    wrong = subprocess.run(["sh", str(SCRIPT), "--nonsense"], capture_output=True, check=False)
    assert wrong.returncode == 64


def test_wrong_checksum_installs_nothing(home: Home, fake_wheel: Path) -> None:
    """A file with another SHA-256 than was said is not installed, and both are shown."""
    before = files(home.path)
    code, said = home.install("--sha256", "ab" * 32, fake_wheel)
    assert code == 1
    assert "ab" * 32 in said
    assert sha256(fake_wheel) in said
    assert files(home.path) == before


def test_without_a_checksum_nothing_is_installed(home: Home, fake_wheel: Path) -> None:
    """With neither a SHA-256 nor a SHA256SUMS that has the file, nothing is installed."""
    before = files(home.path)
    assert "give --sha256" in home.install(fake_wheel)[1]
    sums = fake_wheel.with_name("SHA256SUMS")
    sums.write_text(f"{sha256(fake_wheel)}  other-{fake_wheel.name}\n")
    code, said = home.install(fake_wheel)
    assert code == 1
    assert f"SHA256SUMS does not have {fake_wheel.name}" in said
    assert files(home.path) == before


def test_checksums_may_lie_beside_the_file(home: Home, fake_wheel: Path) -> None:
    """The SHA-256 is found in SHA256SUMS; a dry run says what would follow, and does nothing."""
    fake_wheel.with_name("SHA256SUMS").write_text(f"{sha256(fake_wheel)} *{fake_wheel.name}\n")
    before = files(home.path)
    code, said = home.install("--dry-run", fake_wheel)
    assert code == 0
    assert f"-m venv {home.prefix}/versions/" in said
    assert "Nothing was done." in said
    assert files(home.path) == before


def test_plain_http_is_refused(home: Home) -> None:
    """A file is fetched over https only."""
    code, said = home.install("http://127.0.0.1:9/tidegate-1.0-py3-none-any.whl")
    assert code == 1
    assert "only over https" in said


def test_what_is_not_ours_stays(home: Home, fake_wheel: Path) -> None:
    """A directory or command that something else put there is neither used nor removed."""
    home.prefix.mkdir(parents=True)
    (home.prefix / "precious").touch()
    assert "is not ours" in home.install("--sha256", sha256(fake_wheel), fake_wheel)[1]
    assert home.install("--uninstall")[0] == 1
    shutil.rmtree(home.prefix)
    home.bin.mkdir()
    (home.bin / "tidegate").write_text("another program's")
    assert "is not ours" in home.install("--sha256", sha256(fake_wheel), fake_wheel)[1]
    assert (home.bin / "tidegate").read_text() == "another program's"


def test_failed_installation_leaves_the_command_alone(home: Home, fake_wheel: Path) -> None:
    """A file that pip refuses ends it with an error, and no command is made."""
    code, _ = home.install("--sha256", sha256(fake_wheel), fake_wheel)
    assert code != 0
    assert not (home.bin / "tidegate").exists()
    assert not (home.prefix / "current").exists()


def wheel_of(tree: Path, output: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(output), str(tree)], check=True)
    [wheel] = output.glob("*.whl")
    (output / "SHA256SUMS").write_text(f"{sha256(wheel)}  {wheel.name}\n")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of this version, and of a newer one."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "daemon", tree / "daemon")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    old = wheel_of(tree, tmp_path_factory.mktemp("old"))
    init = tree / "daemon/tidegate/__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{NEWER}"', init.read_text()))
    return old, wheel_of(tree, tmp_path_factory.mktemp("new"))


class Reader(threading.Thread):
    """A client that reads one streamed answer."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.lines: list[bytes] = []

    def run(self) -> None:
        body = json.dumps({"model": "demo", "stream": True, "messages": []}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/v1/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            for line in answer:
                self.lines.append(line)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_installed_upgraded_and_removed(home: Home, wheels: tuple[Path, Path]) -> None:
    """A wheel is installed, installed again, upgraded under a stream, and removed without trace."""
    old, new = wheels
    code, said = home.install(old)
    assert code == 0, said
    assert "tidegate service install" in said
    again_code, again = home.install(old)
    assert again_code == 0
    assert "is there already" in again

    assert home.run("start").returncode == 0
    first = json.loads(home.run("status", "--json").stdout)
    reader = Reader(f"http://{first['listen'][0]}")
    reader.start()
    wait_until(lambda: reader.lines, LIMIT_S, "the stream begins")
    assert "First: tidegate stop" in home.install("--uninstall")[1]
    code, said = home.install(new)
    assert code == 0, said
    assert "no stream is cut" in said
    second = json.loads(home.run("status", "--json").stdout)
    assert (second["version"], second["generation"]) == (NEWER, 2)
    assert second["watchdog"]["pid"] == first["watchdog"]["pid"]
    reader.join(LIMIT_S)
    assert [line for line in reader.lines if line.strip()][-1] == b"data: [DONE]\n"

    first_environment = home.prefix / "versions" / sha256(old)[:12]
    assert first_environment.exists()
    wait_until(
        lambda: len(json.loads(home.run("status", "--json").stdout)["workers"]) == 1,
        LIMIT_S,
        "the former one is gone",
    )
    assert home.install(new)[0] == 0
    assert not first_environment.exists()
    assert home.run("stop").returncode == 0
    code, said = home.install("--uninstall")
    assert code == 0, said
    assert not home.prefix.exists()
    assert list(home.bin.iterdir()) == []
    assert (home.path / "config.toml").exists()


def test_the_lock_decides_what_is_installed(
    home: Home, wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    """With --lock a package of another SHA-256 ends the installation; else its versions come."""
    wheel = wheels[0]
    lock, spoilt = ROOT / "requirements.lock", tmp_path / "spoilt.lock"
    text = lock.read_text()
    start = text.index("sdnotify==")
    spoilt.write_text(text[:start] + re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", text[start:]))
    checked = ("--sha256", sha256(wheel), wheel)
    code, said = home.install("--lock", spoilt, *checked)
    assert code == 1, said
    assert "DO NOT MATCH THE HASHES" in said
    assert not (home.prefix / "current").exists()
    code, said = home.install("--lock", lock, *checked)
    assert code == 0, said
    listed = subprocess.run(
        [str(home.prefix / "current/bin/python"), "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
        env=home.environment,
    ).stdout.splitlines()
    pinned = re.findall(r"^[\w.-]+==[^\s;]+", text, re.MULTILINE)
    assert set(pinned) <= set(listed)


@pytest.fixture(scope="module")
def share(wheels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a computer without a network needs to install either wheel."""
    if reason := private_systemd.missing():
        pytest.skip(reason)
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"needs {SYSTEM_PYTHON}")
    share = tmp_path_factory.mktemp("share")
    here = SCRIPT.parents[1] / "tests" / "system"
    for file in (*wheels, SCRIPT, here / "inside_install.py", here / "inside_deb.py"):
        shutil.copy(file, share)
    (share / "SHA256SUMS").write_text("".join(f"{sha256(w)}  {w.name}\n" for w in wheels))
    pip = [sys.executable, "-m", "pip", "--python", SYSTEM_PYTHON, "wheel", "--quiet", "--no-deps"]
    lock = str(ROOT / "requirements.lock")
    subprocess.run([*pip, "-w", str(share / "wheels"), "-r", lock], check=True)
    return share


@pytest.mark.long
@pytest.mark.timeout(600)
def test_service_of_the_system_is_made_upgraded_and_removed(share: Path) -> None:
    """Under a real systemd: `--service` serves at once, an upgrade cuts no stream, none is left."""
    wheels = sorted(f"/mnt/{wheel.name}" for wheel in share.glob("tidegate-*.whl"))
    inside = [SYSTEM_PYTHON, "-B", "/mnt/inside_install.py", *wheels]
    done = subprocess.run(
        [str(ROOT / "tests/system/private_root.sh"), *inside],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PRIVATE_SHARE": str(share)},
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    seen = json.loads(done.stdout)
    assert seen["first"][0] == 0, seen["first"][1]
    assert seen["unit"]["ActiveState"] == "active"
    assert seen["unit"]["UnitFileState"] == "enabled"
    assert seen["user"] == "tidegate"
    assert seen["second"][0] == 0, seen["second"][1]
    assert (seen["version"], seen["same_process"], seen["stream"]) == (NEWER, True, "whole")
    assert seen["refused"][0] == 1
    assert seen["uninstalled"][0] == 0, seen["uninstalled"][1]
    assert seen["left"] == []
