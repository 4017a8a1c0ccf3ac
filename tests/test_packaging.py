"""What packages install is valid, complete and true: the example configuration, the formula."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import trustme
from msgspec.structs import fields

from tidegate import __version__, config
from tidegate.core import settings
from tidegate.gateway.page.assets import FILES

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "packaging" / "config.toml"
FORMULA = ROOT / "packaging" / "homebrew" / "tidegate.rb"
COMMENTED = re.compile(r"^#(?=\S)", re.MULTILINE)
TABLES = (
    settings.Settings,
    settings.Limits,
    settings.Memory,
    settings.DrainLimits,
    settings.Auth,
    settings.Upstream,
    settings.Model,
    settings.Notify,
    settings.OutwardHeartbeat,
)


def _script(path: Path) -> ModuleType:
    """A script of packaging/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _script(FORMULA.with_name("generate.py"))
UNDOCUMENTED = {"growth"}  # test_docs says why


@pytest.fixture
def uncommented(tmp_path: Path) -> config.LoadedConfig:
    """The example with every setting in force, and with the keys that it names."""
    file = tmp_path / "config.toml"
    file.write_text(COMMENTED.sub("", EXAMPLE.read_text()))
    key = tmp_path / "cloud.key"
    key.write_text("of-the-cloud\n")
    key.chmod(0o600)
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "chat.url").write_text("https://chat.example/hook\n")
    (tmp_path / "chat.url").chmod(0o600)
    environ = {
        "SPARE_KEY": "of-the-spare",
        "GATE": "of-the-gate",
        "MAIL_ADDRESS": "https://mail.example/hook",
    }
    return config.load(file, tmp_path, environ)


def test_example_changes_nothing(tmp_path: Path) -> None:
    """As it is installed, the example leaves every default as it is."""
    copy = tmp_path / "config.toml"
    shutil.copy(EXAMPLE, copy)
    loaded = config.load(copy, tmp_path, {})
    assert loaded.settings == settings.Settings()
    assert loaded.warnings == []


def test_every_setting_can_be_uncommented(uncommented: config.LoadedConfig) -> None:
    """With every setting uncommented the file is still good, and its keys are found."""
    assert uncommented.warnings == []
    assert uncommented.secrets == {"cloud": "of-the-cloud", "spare": "of-the-spare"}
    assert uncommented.headers == {"cloud": {"X-Gate": "of-the-gate", "X-Door": "of-the-cloud"}}
    assert list(uncommented.authorities) == ["ca.pem"]
    assert list(uncommented.addresses) == ["phone", "chat", "mail"]
    assert uncommented.heartbeat_url is not None
    assert [upstream.name for upstream in uncommented.settings.upstreams] == [
        "box",
        "cloud",
        "spare",
    ]
    assert [model.name for model in uncommented.settings.models] == ["fast"]


def test_what_is_shown_is_the_default(uncommented: config.LoadedConfig) -> None:
    """Outside the blocks that are examples, each value that is shown is the default."""
    shown = msgspec.structs.replace(uncommented.settings, upstreams=[], models=[], notify=[])
    assert shown == settings.Settings()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_key_is_shown(table: type[msgspec.Struct]) -> None:
    """Each key there is stands in the example as a setting or as the head of a table."""
    shown = set(
        re.findall(r"^#(?:\[+(?:\w+\.)?)?(\w+)(?= =|\])", EXAMPLE.read_text(), re.MULTILINE)
    )
    assert {field.encode_name for field in fields(table)} - UNDOCUMENTED <= shown


def test_formula_has_the_locked_packages() -> None:
    """Homebrew's formula brings exactly what the lock pins, each with a checksum."""
    locked = generate.pins()
    formula = FORMULA.read_text()
    urls = dict(
        re.findall(
            r'resource "([\w-]+)" do\n +url "(https://\S+)"\n +sha256 "[0-9a-f]{64}"', formula
        )
    )
    assert set(urls) == set(locked)
    for name, package in locked.items():
        version = package.version
        file = urls[name].rsplit("/", 1)[1].lower()
        assert re.sub(r"[-_.]+", "-", file) == re.sub(
            r"[-_.]+", "-", f"{name}-{version}.tar.gz".lower()
        )
        assert urls[name].startswith("https://files.pythonhosted.org/packages/")


def test_formula_has_checksums_that_the_lock_has() -> None:
    """Homebrew downloads no file that pip would refuse."""
    sums = re.findall(r'resource "([\w-]+)" do\n.+\n +sha256 "(\w+)"', FORMULA.read_text())
    assert len(sums) == len(generate.pins())
    for name, checksum in sums:
        assert checksum in generate.pins()[name].hashes, name


def test_a_source_that_the_lock_does_not_have_is_refused() -> None:
    """An archive of another content than the locked one gets no place in the formula."""
    locked = generate.pins()
    pylock = "".join(
        f'[[packages]]\nname = "{name}"\nversion = "{each.version}"\n'
        f'sdist = {{ url = "{generate.PUBLISHED}x", hashes = {{ sha256 = "{each.hashes[0]}" }} }}\n'
        for name, each in locked.items()
    )
    assert len(generate._sources(pylock, locked)) == len(locked)
    other = pylock.replace(locked["rich"].hashes[0], "0" * 64)
    with pytest.raises(SystemExit, match=r"rich: .* has another SHA-256"):
        generate._sources(other, locked)


def test_formula_leaves_out_on_a_mac_what_is_for_linux() -> None:
    """A package that the lock has for Linux alone is a resource on Linux alone."""
    found = re.findall(r'on_linux do\n +resource "([\w-]+)"', FORMULA.read_text())
    only_linux = {name for name, package in generate.pins().items() if package.only_linux}
    assert set(found) == only_linux == {"uvloop"}


def test_formula_is_ruby() -> None:
    """The formula is good Ruby, as far as its syntax goes."""
    if shutil.which("ruby") is None:
        pytest.skip("needs ruby")
    subprocess.run(["ruby", "-wc", str(FORMULA)], check=True)


def test_formula_is_what_the_template_says() -> None:
    """Beside its resources, the formula says what its template says, for this version."""
    formula = FORMULA.read_text()
    template = FORMULA.with_suffix(".rb.in").read_text().replace("@VERSION@", __version__)
    above, below = template.replace("@SHA256@", "0" * 64).split("@RESOURCES@\n")
    assert formula.startswith(above)
    assert formula.endswith(below)


@pytest.mark.processes
def test_archives_have_all_that_is_no_python(tmp_path: Path) -> None:
    """The page, completions, the manual page; and those where shells and man look, too."""
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel], [source] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        in_wheel = opened.namelist()
    with tarfile.open(source) as archive:
        in_source = archive.getnames()
    for name in ("tidegate.bash", "_tidegate", "tidegate.fish", "tidegate.1"):
        assert f"tidegate/cli/shell/{name}" in in_wheel
        assert f"tidegate-{__version__}/daemon/tidegate/cli/shell/{name}" in in_source
    for name in (*FILES, "uplot.LICENSE"):
        assert f"tidegate/gateway/page/static/{name}" in in_wheel
        assert f"tidegate-{__version__}/daemon/tidegate/gateway/page/static/{name}" in in_source
    data = f"tidegate-{__version__}.data/data/share"
    assert {name.removeprefix(data) for name in in_wheel if name.startswith(data)} == {
        "/bash-completion/completions/tidegate",
        "/zsh/site-functions/_tidegate",
        "/fish/vendor_completions.d/tidegate.fish",
        "/man/man1/tidegate.1",
    }


@pytest.mark.parametrize("directory", ["daemon", "launchd", "packaging", "systemd", "tests"])
def test_directory_is_no_package(directory: str) -> None:
    """No directory there can be imported: other projects own these names."""
    assert not (ROOT / directory / "__init__.py").exists()
