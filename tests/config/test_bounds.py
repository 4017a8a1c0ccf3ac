"""A config costs a time in proportion to its size, whatever is in it."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from tidegate import config
from tidegate.config import bounds
from tidegate.config.mistake import MAX_PROBLEMS
from tidegate.core.decoding import Undecodable

MANY = 500_000
LISTEN = "listen = [" + ",".join(f'"127.0.0.1:{n}"' for n in range(1, 10_000)) + "]\n"
UPSTREAM = '[[upstream]]\nname="u%d"\nurl="http://127.0.0.1:9"\n'


def refused(directory: Path, text: str) -> str:
    """Why this config is."""
    path = directory / "config.toml"
    path.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        config.load(path, directory)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a." * MANY + "a = 1",
        "[" + "a." * MANY + "a]",
        "a . " * (MANY // 2) + "a = 1",
        '"a".' * (MANY // 2) + "a = 1",
        "b = {" + "a." * MANY + "a = 1}",
        "b = [\n" + "a." * MANY,
        "\n".join("a" + ".b" * 21 + f".k{n} = 1" for n in range(9000)),
    ],
    ids=["key", "header", "spaces", "quoted", "inline", "array", "many"],
)
def test_a_key_of_many_parts(tmp_path: Path, text: str) -> None:
    """More than 20 dots are refused before they are parsed, which would take a minute and more."""
    assert "a key has more than 20 dots" in refused(tmp_path, text)


def test_dots_that_are_in_no_key(tmp_path: Path) -> None:
    """Strings, comments and numbers of many lines may have as many as they like."""
    dots = "a." * 50
    text = f"""# {dots}
allowed_hosts = ["{dots}b", # {dots}
    '{dots}b']
[limits]
idle_s = 1.5
"""
    (tmp_path / "config.toml").write_text(text)
    assert config.load(tmp_path / "config.toml", tmp_path).settings.limits.idle_s == 1.5
    bounds.check("a = 1.5\n" * 1000)
    bounds.check(f'a = """{dots}\n""{dots}\\"""{dots}""""\nb = 1')
    bounds.check(f"a = '''{dots}\n''{dots}'''''\nb = 1")
    bounds.check("[a" + ".b" * 20 + "]")


@pytest.mark.parametrize(
    "text",
    [
        "a = [" + "1," * MANY + "]", "[[a]]\n" * (MANY // 4), "[" * MANY,
        "\n".join(f"k{n} = 1" for n in range(30_000)), LISTEN * 3, "a = " + "[{}," * 30_000,
    ],
    ids=["array", "tables", "nested", "keys", "addresses", "inline"],
)  # fmt: skip
def test_more_entries_than_any_config_has(tmp_path: Path, text: str) -> None:
    """They are counted first."""
    assert "has more than 20000 entries" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["a = " + "9" * 5000, "a = 0x" + "f" * 5000, "a" * 5000 + " = 1", "a = 1." + "1" * 5000],
)
def test_a_word_without_an_end(tmp_path: Path, text: str) -> None:
    """A number that Python would not read, and an absurd key: with the line."""
    assert "config.toml:2: a word or number has more than" in refused(tmp_path, "#\n" + text)


@pytest.mark.parametrize(
    "piece", ['\\"', "'", '"', "#\n", "\\n", " ", "\n", '""a', "\\\n", "a ]", "."]
)
@pytest.mark.parametrize("start", ['a = "', "a = '''", 'a = """', "[", "", "a = [", "a = '"])
def test_the_look_is_one_pass(start: str, piece: str) -> None:
    """Whatever begins and never ends, a MiB of it is looked at once."""
    for end in ("", '"""', "'''", '"', "]"):
        with suppress(Undecodable):
            bounds.check(start + piece * ((1 << 20) // len(piece)) + end)


def test_twenty_thousand_unknown_keys(tmp_path: Path) -> None:
    """A hundred are told with what they may have meant, the others are counted."""
    text = "\n".join(f"listem{n} = 1" for n in range(19_000))
    with mock.patch.object(difflib, "get_close_matches", wraps=difflib.get_close_matches) as guess:
        told = refused(tmp_path, text).splitlines()
    assert len(told) == MAX_PROBLEMS + 1
    assert told[-1] == f"and {19_000 - MAX_PROBLEMS} more"
    assert guess.call_count <= MAX_PROBLEMS


def test_targets_of_no_upstream(tmp_path: Path) -> None:
    """So are mistyped names of upstreams."""
    upstreams = "".join(UPSTREAM % n for n in range(100))
    targets = ",".join(f'"uu{n}/m"' for n in range(15_000))
    with mock.patch.object(difflib, "get_close_matches", wraps=difflib.get_close_matches) as guess:
        told = refused(tmp_path, f'{upstreams}[[model]]\nname="m"\ntargets=[{targets}]')
    assert told.endswith("and 14900 more")
    assert guess.call_count <= MAX_PROBLEMS


def test_more_addresses_than_sockets(tmp_path: Path) -> None:
    """Each upstream is compared with each address, so these are few."""
    text = LISTEN + "".join(UPSTREAM % n for n in range(2000))
    assert "listen: has more than 32 addresses" in refused(tmp_path, text)


def test_a_key_is_told_in_part(tmp_path: Path) -> None:
    """A key of a screen's length is cut, and brackets in it cost nothing."""
    told = refused(tmp_path, '"' + "a.[" * 300_000 + '" = 1')
    assert len(told) < 300
    assert "…" in told


@pytest.mark.parametrize("number", ["0x" + "f" * 900, "-" + "9" * 900, "9" * 900, "inf", "nan"])
@pytest.mark.parametrize("key", ["limits.max_queued", "limits.window", "limits.idle_s"])
def test_numbers_beyond_all_bounds(tmp_path: Path, key: str, number: str) -> None:
    """They are a problem of their key, and no fault of ours."""
    assert f"{key}: must be" in refused(tmp_path, f"{key} = {number}")
