"""The example configuration that packages install is valid, complete and true."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import fields

from tidegate import config
from tidegate.core import settings

EXAMPLE = Path(__file__).parents[1] / "packaging" / "config.toml"
COMMENTED = re.compile(r"^#(?=\S)", re.MULTILINE)
TABLES = (
    settings.Settings,
    settings.Limits,
    settings.Memory,
    settings.Drain,
    settings.Auth,
    settings.Upstream,
    settings.Model,
)
HAS_NO_EFFECT = {"growth"}  # accepted, but no reader of an example is helped by it


@pytest.fixture
def uncommented(tmp_path: Path) -> config.LoadedConfig:
    """The example with every setting in force, and with the keys that it names."""
    file = tmp_path / "config.toml"
    file.write_text(COMMENTED.sub("", EXAMPLE.read_text()))
    key = tmp_path / "cloud.key"
    key.write_text("of-the-cloud\n")
    key.chmod(0o600)
    return config.load(file, tmp_path, {"SPARE_KEY": "of-the-spare"})


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
    assert [upstream.name for upstream in uncommented.settings.upstreams] == [
        "box",
        "cloud",
        "spare",
    ]
    assert [model.name for model in uncommented.settings.models] == ["fast"]


def test_what_is_shown_is_the_default(uncommented: config.LoadedConfig) -> None:
    """Outside the blocks that are examples, each value that is shown is the default."""
    shown = msgspec.structs.replace(uncommented.settings, upstreams=[], models=[])
    assert shown == settings.Settings()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_key_is_shown(table: type[msgspec.Struct]) -> None:
    """Each key there is stands in the example as a setting or as the head of a table."""
    shown = set(
        re.findall(r"^#(?:\[+(?:\w+\.)?)?(\w+)(?= =|\])", EXAMPLE.read_text(), re.MULTILINE)
    )
    assert {field.encode_name for field in fields(table)} - HAS_NO_EFFECT <= shown
