"""The lock files: hashes for all, an audit that finds what is wrong, a bill of materials."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
FILES = ("pyproject.toml", "requirements.lock", "requirements-build.lock", "requirements-dev.lock")


def _script(name: str) -> ModuleType:
    """A script of packaging/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, PACKAGING / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


locks, audit, sbom = map(_script, ("locks", "audit", "sbom"))
KNOWN = tomllib.loads((PACKAGING / "packages.toml").read_text())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that the audit reads, to be spoilt."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_lock_files_pass_the_audit() -> None:
    """What is in the tree is as it is to be."""
    assert audit.audit(ROOT, KNOWN) == []


def _unhashed(tree: Path) -> None:
    [first, *_] = locks.read(tree / "requirements.lock")
    _replace(tree / "requirements.lock", first.written(), f"{first.pin}\n")


def _unlocked(tree: Path) -> None:
    [psutil] = [each for each in locks.read(tree / "requirements.lock") if each.key == "psutil"]
    _replace(tree / "requirements.lock", psutil.written(), "")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_unhashed, "has no SHA-256; run make lock"),
        (_unlocked, "psutil is missing"),
        (
            lambda tree: _replace(tree / "pyproject.toml", "psutil>=6.0", "psutil>=99"),
            "is not what pyproject.toml asks for: psutil>=99",
        ),
        (
            lambda tree: _replace(tree / "pyproject.toml", "aiohttp>=3.14.5", "aiohttp>=3.9"),
            "allows aiohttp below 3.14.5",
        ),
        (
            lambda tree: _replace(tree / "requirements.lock", "aiohttp==3.14.5", "aiohttp==3.14.1"),
            "aiohttp==3.14.1 is below 3.14.5",
        ),
        (
            lambda tree: _replace(
                tree / "pyproject.toml", "uvloop>=0.21; sys_platform == 'linux'", "uvloop>=0.21"
            ),
            "is for other systems",
        ),
        (
            lambda tree: _replace(tree / "requirements-dev.lock", "annotated-types==", "yarl=="),
            "yarl is locked twice",
        ),
        (
            lambda tree: _replace(tree / "requirements.lock", "sdnotify==", "left-pad=="),
            "left-pad: its licence is not known",
        ),
    ],
    ids=["hash", "missing", "range", "floor", "old", "marker", "twice", "licence"],
)
def test_the_audit_names_what_is_wrong(
    tree: Path, spoil: Callable[[Path], None], words: str
) -> None:
    """Each kind of mistake in a lock file or in pyproject.toml is found."""
    spoil(tree)
    assert any(words in what for what in audit.audit(tree, KNOWN))


@pytest.mark.parametrize(
    ("licences", "words"),
    [
        ({"aiohttp": "AGPL-3.0-only"}, "AGPL-3.0-only is no accepted licence"),
        ({"attrs": "BSD-3-Clause"}, "packages.toml says BSD-3-Clause, the package MIT"),
        ({"left-pad": "MIT"}, "knows left-pad, which is not locked"),
    ],
)
def test_the_audit_compares_licences(licences: dict[str, str], words: str) -> None:
    """One that is not accepted, not what the package says, or of no package here is named."""
    known = {**KNOWN, "licences": KNOWN["licences"] | licences}
    assert any(words in what for what in audit.audit(ROOT, known))


def test_the_audit_runs_as_make_calls_it() -> None:
    """As a script it says how many packages it looked at, and ends well."""
    done = subprocess.run(
        [sys.executable, str(PACKAGING / "audit.py")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    locked = sum(len(locks.read(path)) for path in locks.ALL)
    assert f"{locked} locked packages" in done.stdout


def test_a_file_of_another_content_is_not_installed(tmp_path: Path) -> None:
    """pip refuses a package whose SHA-256 is not the locked one, before anything is installed."""
    wheel = tmp_path / "tide_test-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not what was locked")
    lock = tmp_path / "requirements.lock"
    lock.write_text(locks.Locked("tide-test", "1.0", "", ("0" * 64,)).written())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path)),
            *("--require-hashes", "--target", str(tmp_path / "target"), "-r", str(lock)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "target").exists()


def test_hashes_are_written_beside_what_pins_them() -> None:
    """Comments, order, names and markers stay, and what is written reads the same again."""
    text = (
        "# why\n-r other.lock\nRich==15.0.0\n"
        'uvloop==0.23.0; sys_platform == "linux" \\\n    --hash=sha256:' + "0" * 64 + "\n"
    )
    written = locks.rewrite(text, {"rich": ("a" * 64, "b" * 64), "uvloop": ("c" * 64,)})
    assert written == (
        "# why\n-r other.lock\n"
        f"Rich==15.0.0 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\n"
        f'uvloop==0.23.0; sys_platform == "linux" \\\n    --hash=sha256:{"c" * 64}\n'
    )


@pytest.mark.parametrize("path", locks.ALL, ids=lambda path: path.name)
def test_a_lock_file_reads_as_it_was_written(path: Path) -> None:
    """Rewritten with the hashes it has, a lock file stays as it is."""
    hashes = {each.key: each.hashes for each in locks.read(path)}
    assert locks.rewrite(path.read_text(), hashes) == path.read_text()


@pytest.mark.parametrize("line", ["rich>=15", "rich", "git+ssh://x/y", "rich==1 --hash=md5:0"])
def test_what_is_no_pin_is_refused(tmp_path: Path, line: str) -> None:
    """A lock file holds nothing but versions and SHA-256."""
    path = tmp_path / "some.lock"
    path.write_text(f"{line}\n")
    with pytest.raises(locks.LockError):
        locks.read(path)


def test_the_bill_of_materials_has_what_runs(tmp_path: Path) -> None:
    """Every locked package with version, licence and hashes; written twice it is the same."""
    written = []
    for number in range(2):
        folder = tmp_path / str(number)
        subprocess.run(
            [sys.executable, str(PACKAGING / "sbom.py"), "--output", str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        [path] = folder.iterdir()
        written.append(path.read_bytes())
    assert written[0] == written[1]
    bill = json.loads(written[0])
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    locked = {each.key: each for each in locks.read(locks.RUNTIME)}
    assert [each["name"] for each in bill["components"]] == list(locked)
    for component in bill["components"]:
        package = locked[component["name"]]
        assert component["purl"] == f"pkg:pypi/{package.key}@{package.version}"
        [reference] = component["externalReferences"]
        assert [each["content"] for each in reference["hashes"]] == list(package.hashes)
        assert component["licenses"] == [{"expression": KNOWN["licences"][package.key]}]
    refs = {each["bom-ref"] for each in bill["components"]}
    [root] = bill["dependencies"]
    assert root["ref"] == bill["metadata"]["component"]["bom-ref"]
    assert set(root["dependsOn"]) < refs
    assert len(root["dependsOn"]) == 11
