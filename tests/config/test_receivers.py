"""Receivers of notices and the heartbeat: their addresses are read, judged and shown nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tidegate import config
from tidegate.config import ConfigError, LoadedConfig
from tidegate.config.keys import variables_of
from tidegate.config.receivers import LEAST_HEARTBEAT_S
from tidegate.core.settings import MOST_RECEIVERS

CANARY = "CANARY-5d1f-2c7a"
URL = f"https://hooks.example/{CANARY}"
Load = Callable[..., LoadedConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a text as a config file, with an environment that has nothing else in it."""

    def load_text(text: str, **environ: str) -> LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return config.load(path, tmp_path, environ)

    return load_text


def test_addresses_come_from_the_file_from_another_and_from_the_environment(
    load: Load, tmp_path: Path
) -> None:
    """And are in no settings, which workers, bundles and the upgrade's log get to see."""
    (tmp_path / "hook").write_text(f"{URL}-file\n")
    (tmp_path / "hook").chmod(0o600)
    loaded = load(
        f'[[notify]]\nname = "a"\nurl = "{URL}"\nquiet = "22:00-07:00"\n'
        '[[notify]]\nname = "b"\nurl_file = "hook"\nmin_severity = "error"\n'
        f'[[notify]]\nname = "c"\nurl_env = "HOOK"\n[heartbeat]\nurl = "{URL}-beat"\nevery_s = 5\n',
        HOOK=f"{URL}-env",
    )
    assert loaded.addresses == {"a": URL, "b": f"{URL}-file", "c": f"{URL}-env"}
    assert loaded.heartbeat_url == f"{URL}-beat"
    assert loaded.warnings == []
    assert CANARY not in repr(loaded)
    assert CANARY not in msgspec.json.encode(loaded.settings).decode()
    assert CANARY not in repr(config.read_settings(tmp_path / "config.toml"))
    assert {URL, f"/{CANARY}-file", f"{URL}-beat"} <= set(loaded.hidden)
    assert list(variables_of(loaded.settings)) == ["HOOK"]


def test_one_receiver_needs_no_name(load: Load) -> None:
    """It is called notify, and told of warnings and errors at any time."""
    loaded = load('[[notify]]\nurl = "ntfy://ntfy.sh/topic"\n')
    assert loaded.addresses == {"notify": "ntfy://ntfy.sh/topic"}
    [receiver] = loaded.settings.notify
    assert (receiver.min_severity, receiver.quiet) == ("warning", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[notify]]\n", "notify[0].url: is missing; url_file or url_env"),
        (f'[[notify]]\nurl = "{CANARY}"\n', ":2: notify[0].url: must be like ntfy://"),
        (f'[[notify]]\nurl = "{URL}#x"\n', 'notify[0].url: must have no "#"'),
        (f'[[notify]]\nurl = "{URL}"\nurl_env = "X"\n', "notify[0].url_env: is there beside url"),
        ('[[notify]]\nurl_env = "GONE"\n', "notify[0].url_env: the environment has no such"),
        ('[[notify]]\nurl_env = "BAD"\n', "notify[0].url_env: what it leads to must be like"),
        ('[[notify]]\nurl_file = "gone"\n', "there is no such file"),
        ('[[notify]]\nurl_file = "open"\n', "chmod 600"),
        (f'[[notify]]\nurl = "{URL}"\nmin_severity = "bad"\n', 'must be "note", "warning" or'),
        (f'[[notify]]\nurl = "{URL}"\nquiet = "22-7"\n', "quiet: must be two times of the day"),
        (f'[[notify]]\nurl = "{URL}"\nname = "a b"\n', "notify[0].name: must be 1 to 64 letters"),
        (f'[[notify]]\nurl = "{URL}"\n' * 2, "another one is called 'notify' already; name each"),
        (f'[[notify]]\nurl = "{URL}"\n' * (MOST_RECEIVERS + 1), "has more than 8 receivers"),
        (f'[notify]\nurl = "{URL}"\n', "must be a list of tables, each begun by [[notify]]"),
        ('[heartbeat]\nurl = "ntfy://h/t"\n', "heartbeat.url: must be like https://host/path"),
        (f'[heartbeat]\nurl = "{URL}"\nevery_s = {LEAST_HEARTBEAT_S / 2}\n', "at least 5 s"),
        (f'[heartbeat]\nurl = "{URL}"\nurl_file = "x"\n', "heartbeat.url_file: is there beside"),
        (f'[[notify]]\nurl = "{URL}"\nurll = 1\n', "did you mean url?"),
    ],
)
def test_mistakes_say_what_to_do_and_repeat_no_address(
    load: Load, tmp_path: Path, text: str, says: str
) -> None:
    """With the line of the key."""
    (tmp_path / "open").write_text(URL)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(ConfigError) as refused:
        load(text, BAD=CANARY)
    assert says in str(refused.value)
    assert CANARY not in str(refused.value)


def test_an_address_of_apprise_without_apprise_is_warned_of(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts all the same: the rest of tidegate does not need it."""
    text = f'[[notify]]\nname = "chat"\nurl = "tgram://{CANARY}/x"\n'
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [warning] = load(text).warnings
    assert "chat can be told nothing without Apprise: pip install 'tidegate[notify]'" in warning
    assert CANARY not in warning
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert load(text).warnings == []


def test_the_page_of_a_topic_is_warned_of(load: Load) -> None:
    """What one copies from the browser is a webhook's address, and people would read JSON."""
    text = '[[notify]]\nname = "phone"\nurl = "{}://ntfy.sh/CANARY-5d1f"\n'
    [warning] = load(text.format("https")).warnings
    assert "phone would show people JSON; write its url as ntfy://ntfy.sh/TOPIC" in warning
    assert "CANARY" not in warning
    assert load(text.format("ntfy")).warnings == []
