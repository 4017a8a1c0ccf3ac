"""The config file: what is accepted, what is refused, and that a refusal tells where and why."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import config
from tidegate.config import ConfigError, tokens
from tidegate.core.settings import MIB, Settings

CANARY = "sk-CANARY-5d1f"


@pytest.fixture
def load(tmp_path):
    """Load a text as a config file, with an environment that has nothing else in it."""
    state = tmp_path / "state"
    state.mkdir()

    def load_text(text: str | bytes, **environ: str) -> config.LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(path, state, environ)

    return load_text


BOX = '[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:8080"\n'


def test_empty_file_gives_the_defaults(load):
    """An empty file means the defaults, every one of them."""
    loaded = load("")
    assert loaded.settings == Settings()
    assert (loaded.secrets, loaded.tokens, loaded.warnings) == ({}, [], [])


def test_every_documented_key_arrives(load):
    """Each kind of setting in a full file ends up in its field, sizes as bytes."""
    settings = load(
        """
        listen = ["127.0.0.1:0", "[::1]:8433", "unix:/run/x.sock"]
        allowed_hosts = ["example.com", "*.example.org:8433", "[fd00::1]"]
        [limits]
        idle_s = 7
        window = "512KiB"
        max_body = 2048
        [memory]
        budget = "1.5GiB"
        mode = "observe"
        [drain]
        stop_limit_s = 0
        [auth]
        allow_without_token = true
        [[upstream]]
        name = "box"
        url = "https://api.example.com:8443/v1"
        max_concurrent = 4
        [upstream.limits]
        total_s = 60.5
        plain_s = 30
        [[upstream]]
        name = "sock"
        url = "unix:/run/llama.sock:/v1"
        [[model]]
        name = "fast"
        targets = [["box/qwen3", "sock/org/name:tag"], "box/small"]
        [model.limits]
        window = "1MiB"
        """
    ).settings
    assert settings.listen == ["127.0.0.1:0", "[::1]:8433", "unix:/run/x.sock"]
    assert settings.limits.idle_s == 7.0
    assert settings.limits.window_bytes == MIB // 2
    assert settings.limits.max_body_bytes == 2048
    assert settings.memory.budget_bytes == 1536 * MIB
    assert settings.memory.mode == "observe"
    assert settings.drain.stop_limit_s == 0
    assert settings.upstreams[0].limits.over(settings.limits).total_s == 60.5
    assert settings.limits.plain_s is None
    assert settings.upstreams[0].limits.over(settings.limits).plain_s == 30.0
    assert settings.models[0].levels == [["box/qwen3", "sock/org/name:tag"], ["box/small"]]
    assert settings.models[0].limits.window_bytes == MIB


def test_one_address_may_stand_alone_and_auto_is_none(load):
    """`listen` may be one text, and the budget "auto"; a byte order mark is no error."""
    settings = load(b'\xef\xbb\xbflisten = "127.0.0.1:9"\nmemory.budget = "auto"').settings
    assert settings.listen == ["127.0.0.1:9"]
    assert settings.memory.budget_bytes is None


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("listn = 1", 1, "listn", "did you mean listen?"),
        ("port = 1", 1, "port", "did you mean listen?"),
        (f'{BOX}base_url = "http://x"', 4, "upstream[0].base_url", "did you mean url?"),
        ("\nidle_s = 1", 2, "idle_s", r"belongs under \[limits\]"),
        ("[limits]\nidles = 1", 2, "limits.idles", "did you mean idle_s?"),
        ("zzz = 1", 1, "zzz", "unknown key$"),
        ('[limits]\nidle_s = "2 years"', 2, "limits.idle_s", 'seconds, or a text such as "90s"'),
        ('[limits]\nidle_s = ""', 2, "limits.idle_s", "a number of seconds"),
        ('[limits]\nidle_s = "90"', 2, "limits.idle_s", "a number of seconds"),
        ('[limits]\nidle_s = "30m1h"', 2, "limits.idle_s", "a number of seconds"),
        ('[limits]\nidle_s = "-2m"', 2, "limits.idle_s", "a number of seconds"),
        ('[limits]\nidle_s = "0s"', 2, "limits.idle_s", "at least 0.001 s"),
        ('[limits]\nidle_s = "999d"', 2, "limits.idle_s", "at most"),
        (
            '[[upstream]]\nname="x"\nurl="http://x"\nmax_concurrent = "2m"',
            4,
            "upstream[0].max_concurrent",
            "whole number",
        ),
        ("[limits]\nidle_s = true", 2, "limits.idle_s", "a number of seconds"),
        ("limits.idle_s = 2020-01-01", 1, "limits.idle_s", "a number of seconds"),
        ("limits = {idle_s = 0}", 1, "limits.idle_s", "at least 0.001 s"),
        ("[limits]\ntotal_s = 0", 2, "limits.total_s", "at least"),
        ("[limits]\ntotal_s = -1", 2, "limits.total_s", "at least"),
        ("[limits]\ntotal_s = nan", 2, "limits.total_s", "finite"),
        ("[limits]\ntotal_s = inf", 2, "limits.total_s", "finite"),
        ("[limits]\ntotal_s = 1e300", 2, "limits.total_s", "at most"),
        ("[limits]\ngrace_s = -0.1", 2, "limits.grace_s", "at least 0 s"),
        ("[limits]\nmax_queued = 1.5", 2, "limits.max_queued", "whole number"),
        ("[limits]\nmax_queued = 99999999999999999999", 2, "limits.max_queued", "at most 1000000"),
        ('[limits]\nwindow = "4M"', 2, "limits.window", 'a size such as "512KiB", "4MiB", "32MB"'),
        ('[limits]\nwindow = "65KB"', 2, "limits.window", "at least 64KiB"),
        ('[limits]\nwindow = "auto"', 2, "limits.window", "must be a size"),
        ("[limits]\nwindow = 4.5", 2, "limits.window", "must be a size"),
        ("[limits]\nwindow = true", 2, "limits.window", "must be a size"),
        ("[limits]\nwindow = -4", 2, "limits.window", "at least 64KiB"),
        ('[limits]\nwindow = "2048GiB"', 2, "limits.window", "at most 1024GiB"),
        ("limits = 3", 1, "limits", "must be a table"),
        ('[memory]\nbudget = "127MiB"', 2, "memory.budget", "at least 128MiB"),
        ('[memory]\nmode = "off"', 2, "memory.mode", '"enforce" or "observe"'),
        ("[drain]\nstop_limit_s = -1", 2, "drain.stop_limit_s", "at least 0 s"),
        ("[drain]\nrecycle_limit_s = 0", 2, "drain.recycle_limit_s", "at least"),
        ('[auth]\nallow_without_token = "yes"', 2, "auth.allow_without_token", "true or false"),
        ('[journal]\nkeep = "all"', 2, "journal.keep", '"auto", "answers", "ends" or "off"$'),
        ("[journal]\nkeep = false", 2, "journal.keep", "must be a text"),
        ('[journal]\nplace = "ram"', 2, "journal.place", '"auto", "memory" or "disk"$'),
        ("[journal]\nevery_s = 0", 2, "journal.every_s", "at least"),
        ('[journal]\nmax = "1KiB"', 2, "journal.max", "at least 256KiB"),
        ("[history]\nmax_rows = -1", 2, "history.max_rows", "at least 0"),
        ('[auth]\ntokens_file = ""', 2, "auth.tokens_file", "name of a file"),
        ("listen = []", 1, "listen", "is empty"),
        ("listen = 8433", 1, "listen", "list of texts"),
        ('listen = ":8433"', 1, "listen", "is not an address"),
        ('listen = "127.0.0.1"', 1, "listen", "is not an address"),
        ('listen = "127.0.0.1:٨٠"', 1, "listen", "is not an address"),
        ('listen = "box.lan:8433"', 1, "listen", "names are not looked up"),
        ('listen = "LocalHost:8433"', 1, "listen", "names are not looked up"),
        ('listen = "127.0.0.1:65536"', 1, "listen", "is not an address"),
        ('listen = "127.0.0.256:1"', 1, "listen", "is not an address"),
        ('listen = "::1:8433"', 1, "listen", "is not an address"),
        ('listen = "[::g]:8433"', 1, "listen", "is not an address"),
        ('listen = "http://127.0.0.1:1"', 1, "listen", "is not an address"),
        ('listen = "unix:run/x"', 1, "listen", "absolute path"),
        (f'listen = "unix:/{"x" * 110}"', 1, "listen", "103 bytes"),
        ('listen = ["127.0.0.1:1", "127.0.0.1:1"]', 1, "listen", "twice"),
        ('allowed_hosts = ["*"]', 1, "allowed_hosts[0]", "is not a host"),
        ('allowed_hosts = ["http://x"]', 1, "allowed_hosts[0]", "is not a host"),
        ('allowed_origins = ["*"]', 1, "allowed_origins[0]", "pages of strangers"),
        ('allowed_origins = ["https://a.example/x"]', 1, "allowed_origins[0]", "nothing stands"),
        ('allowed_origins = ["https://a.example", "b"]', 1, "allowed_origins[1]", "begins with"),
        ('allowed_hosts = ["a b"]', 1, "allowed_hosts[0]", "is not a host"),
        ('upstream = "box"', 1, "upstream", r"begun by \[\[upstream\]\]"),
        ('[[upstream]]\nname = "box"', 1, "upstream[0].url", "is missing"),
        (f'{BOX}[[upstream]]\nname = "a/b"\nurl = "http://x"', 5, "upstream[1].name", "letters"),
        (f"{BOX}{BOX}", 5, "upstream[1].name", "'box' already"),
        (f"{BOX}[upstream.limits]\nidles=1", 5, "upstream[0].limits.idles", "did you mean idle_s"),
        (f'{BOX}[[model]]\nname="f"\ntargets=[]', 6, "model[0].targets", "is empty"),
        (f'{BOX}[[model]]\nname="f"\ntargets=["bax/m"]', 6, "model[0].targets", "mean 'box'"),
        (f'{BOX}[[model]]\nname="f"\ntargets=["box"]', 6, "model[0].targets", "upstream/model"),
        (f'{BOX}[[model]]\nname="f"\ntargets=["box/"]', 6, "model[0].targets", "upstream/model"),
        (f'{BOX}[[model]]\nname="f"\ntargets=["box/m","box/m"]', 6, "model[0].targets", "twice"),
        (f'{BOX}[[model]]\nname="f"\ntargets=[["box/m"],[]]', 6, "model[0].targets", "empty list"),
        (f'{BOX}[[model]]\nname="f"\ntargets=["box/m",["box/m"]]', 6, "model[0].targets", "twice"),
        (f'{BOX}[[model]]\nname="f"\ntargets=[["box/m","box/m"]]', 6, "model[0].targets", "twice"),
        (f'{BOX}[[model]]\nname="f"\ntargets=[[["box/m"]]]', 6, "model[0].targets", "no deeper"),
        (f'{BOX}[[model]]\nname="f"\ntargets=[["bax/m"]]', 6, "model[0].targets", "mean 'box'"),
        (f'{BOX}[[model]]\nname="f"\ntargets=[1]', 6, "model[0].targets", "list of texts"),
        (f'{BOX}[[model]]\nname="f"\ntargets="box/m"', 6, "model[0].targets", "list of texts"),
        ("[limits]\nplain_s = 0", 2, "limits.plain_s", "at least"),
        (f'{BOX}[[model]]\nname=""\ntargets=["box/m"]', 5, "model[0].name", "printable"),
        (f'{BOX}[[model]]\nname="box/m"\ntargets=["box/m"]', 5, "model[0].name", "hide"),
    ],
)
def test_mistakes_name_line_key_and_remedy(load, tmp_path, text, line, key, says):
    """A mistake is answered with the file, the line, the key path and what would be right."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    first = str(caught.value).splitlines()[0]
    place = f"{tmp_path / 'config.toml'}:{line}: {key}: "
    assert first.startswith(place)
    assert re.search(says, first)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "ftp://x",
        "http://",
        "http://x:0x50",
        "http://x:99999",
        "http://x y/",
        "http://x/?key=1",
        "http://x/#f",
        "http://[::1/",
        "http://x/\\u0000",
        "http://user:secret@x/",
        "unix:x",
        "unix:/x:v1",
        "unix:/x?y",
        "//x",
    ],
)
def test_urls_that_are_none_are_refused_without_being_repeated(load, url):
    """A bad URL is refused, and its text, which may hold a password, is not repeated."""
    with pytest.raises(ConfigError, match=r"upstream\[0\]\.url: must be|hold no|needs") as caught:
        load(f'[[upstream]]\nname = "box"\nurl = "{url}"')
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = = 2", ":1:5: "),
        ('a = 1\nb = "x', ":2"),
        ("a = [1,\n2", ":2: "),
        ("[a]\n[a]", ":2:3: "),
        (b"a = 1\nb = '\xff'", ":2: not UTF-8"),
        ("a = " + "[" * 100_000, ""),
    ],
)
def test_syntax_errors_name_line_and_column(load, text, place):
    """A file that is no TOML is refused with the place where the parser stopped."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert f"config.toml{place}" in str(caught.value)


def test_all_mistakes_are_said_at_once(load):
    """Three mistakes give three lines."""
    with pytest.raises(ConfigError) as caught:
        load('listn = 1\n[limits]\nidle_s = "x"\nwindow = 3')
    assert len(str(caught.value).splitlines()) == 3


def keys_of(error: ConfigError) -> list[tuple[str, str]]:
    """Line and key of each problem."""
    return re.findall(r"config\.toml:(\d+): ([^:]+):", str(error))


def test_each_line_has_the_problem_that_it_tells(load):
    """As a value, in the order of the file; the lines beyond the limit are one without any."""
    with pytest.raises(ConfigError) as error:
        load("a = 1\nb = 2\n")
    assert [problem.key for _, problem in error.value.lines] == ["a", "b"]
    with pytest.raises(ConfigError) as error:
        load("".join(f"k{n} = 1\n" for n in range(150)))
    *told, (last, none) = error.value.lines
    assert all(problem.key in line for line, problem in told)
    assert (last, none) == ("and 50 more", None)
    with pytest.raises(ConfigError) as error:
        load("listen = [")
    assert [problem for _, problem in error.value.lines] == [None]


def test_mistakes_in_types_do_not_hide_the_others(load):
    """A wrong type, an unknown key, a bad URL and a target that leads nowhere are told together.

    In the order of the file, so that one can go through it from top to bottom.
    """
    with pytest.raises(ConfigError) as caught:
        load(
            f"""listen = ["127.0.0.1:70000"]
limits.idle_s = "x"
memory.mode = "off"
{BOX}api_key_file = "missing.key"
max_concurent = 3
[[model]]
name = "fast"
targets = ["bax/m"]
"""
        )
    assert keys_of(caught.value) == [
        ("1", "listen"),
        ("2", "limits.idle_s"),
        ("3", "memory.mode"),
        ("7", "upstream[0].api_key_file"),
        ("8", "upstream[0].max_concurent"),
        ("11", "model[0].targets"),
    ]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("listen = 3", ["listen"]),
        ('listen = "0.0.0.0:99999"', ["listen"]),
        ('listen = "0.0.0.0:1"\nauth.allow_without_tokn = true', ["auth.allow_without_tokn"]),
        ("auth.tokens_file = 3", ["auth.tokens_file"]),
        (
            '[[upstreams]]\nname="box"\nurl="http://x"\n[[model]]\nname="f"\ntargets=["box/m"]',
            ["upstreams"],
        ),
        (
            '[[upstream]]\nnme="box"\nurl="http://x"\n[[model]]\nname="f"\ntargets=["box/m"]',
            ["upstream[0].name", "upstream[0].nme"],
        ),
        ('upstream = "box"\n[[model]]\nname="f"\ntargets=["box/m"]', ["upstream"]),
        (f'{BOX}[[model]]\nname="f"\ntargets="box/m"', ["model[0].targets"]),
        ('[[upstream]]\nname="box"\nurl=3', ["upstream[0].url"]),
    ],
)
def test_what_only_follows_from_a_mistake_is_not_told(load, text, keys):
    """One misspelt key is one line: what is judged of its default would mislead."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert [key for _, key in keys_of(caught.value)] == keys


MINE = "listen = {listen}\nauth.allow_without_token = true\n"


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ('"127.0.0.1:8433"', "http://127.0.0.1:8433"),
        ('"127.0.0.1:8433"', "http://localhost:8433/v1"),
        ('"127.0.0.1:8433"', "http://0.0.0.0:8433"),
        ('"localhost:8433"', "http://127.0.0.1:8433"),
        ('"0.0.0.0:8433"', "http://127.0.0.7:8433"),
        ('"[::1]:8433"', "http://[0:0::1]:8433/v1"),
        ('"[::]:8433"', "http://localhost:8433"),
        ('"192.168.77.7:8433"', "http://192.168.77.7:8433"),
        ('"127.0.0.1:80"', "http://127.0.0.1/v1"),
        ('"127.0.0.1:443"', "https://localhost"),
        ('["127.0.0.1:1", "unix:/run/tg.sock"]', "unix:/run/tg.sock:/v1"),
    ],
)
def test_an_upstream_that_is_tidegate_itself_is_refused(load, listen, url):
    """It would ask itself without end; the message names the address it listens at."""
    with pytest.raises(ConfigError, match=r"upstream\[0\]\.url: is tidegate's own address"):
        load(f'{MINE.format(listen=listen)}[[upstream]]\nname = "box"\nurl = "{url}"')


def test_this_computers_own_names_and_addresses_are_tidegate_too(load, monkeypatch):
    """Where it listens on all of them, its name in the network leads back as well."""
    monkeypatch.setattr("socket.gethostname", lambda: "attic.home")
    anywhere, on_loopback = (MINE.format(listen=f'"{ip}:8433"') for ip in ("0.0.0.0", "127.0.0.1"))
    for name in ("attic.home", "Attic.local", "attic.home.local"):
        url = f'[[upstream]]\nname = "box"\nurl = "http://{name}:8433"'
        with pytest.raises(ConfigError, match="own address"):
            load(anywhere + url)
        assert load(on_loopback + url)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ('"127.0.0.1:8433"', "http://127.0.0.1:8080"),
        ('"127.0.0.1:8433"', "http://192.0.2.7:8433"),
        ('"0.0.0.0:8433"', "http://192.0.2.7:8433"),
        ('"127.0.0.1:8433"', "http://[::1]:8433"),
        ('"127.0.0.1:0"', "http://127.0.0.1:8433"),
        ('"127.0.0.1:8433"', "http://llm.example.com:8433"),
        ('"unix:/run/tg.sock"', "unix:/run/llama.sock"),
        ('"unix:/run/tg.sock"', "http://127.0.0.1:8433"),
    ],
)
def test_another_tidegate_or_server_is_an_upstream(load, listen, url):
    """Another port, another computer, another family of addresses: none of them is ours."""
    assert load(f'{MINE.format(listen=listen)}[[upstream]]\nname = "box"\nurl = "{url}"')


def test_a_listen_that_the_environment_overrules_is_warned_of(load):
    """Who changes `listen` in vain is told why; where both say the same, nothing is."""
    [warning] = load('listen = "127.0.0.1:1"', TIDEGATE_LISTEN="127.0.0.1:2").warnings
    assert warning.startswith("listen: the environment's TIDEGATE_LISTEN (127.0.0.1:2) stands")
    assert load('listen = "127.0.0.1:2"', TIDEGATE_LISTEN="127.0.0.1:2").warnings == []
    assert load("", TIDEGATE_LISTEN="127.0.0.1:2").warnings == []


def test_named_file_must_exist_and_usual_one_need_not(tmp_path, monkeypatch):
    """A missing file is an error only when it was asked for by name."""
    monkeypatch.setattr("tidegate.config.places.SYSTEM_CONFIG_DIR", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no such file"):
        config.load(tmp_path / "config.toml", tmp_path, {})
    loaded = config.load(None, tmp_path, {})
    assert loaded.path is None
    assert loaded.settings == Settings()


def test_usual_file_is_read_once_it_is_there(tmp_path, monkeypatch):
    """Without a named file, the one in the usual place is read."""
    monkeypatch.setattr("tidegate.config.places.SYSTEM_CONFIG_DIR", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    usual = tmp_path / "tidegate" / "config.toml"
    usual.parent.mkdir()
    usual.write_text("limits.idle_s = 9")
    loaded = config.load(None, tmp_path, {})
    assert (loaded.path, loaded.settings.limits.idle_s) == (usual, 9.0)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, make):
    """A directory or a named pipe in the file's place is refused at once."""
    make(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match=r"not a regular file|directory"):
        config.load(tmp_path / "config.toml", tmp_path, {})


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.168.1.2:1"])
def test_reachable_by_others_needs_a_token_or_the_setting(load, tmp_path, address):
    """An address that others reach is refused until there is a token or the setting allows it."""
    with pytest.raises(ConfigError, match=r"auth\.allow_without_token"):
        load(f'listen = "{address}"')
    assert load(f'listen = "{address}"\nauth.allow_without_token = true').settings
    tokens.new(tmp_path / "state" / "tokens", "laptop")
    assert [token.name for token in load(f'listen = "{address}"').tokens] == ["laptop"]


@pytest.mark.parametrize("address", ["127.9.9.9:1", "[::1]:1", "[0:0::1]:1", "localhost:1"])
def test_local_addresses_need_no_token(load, address):
    """An address that only this computer reaches is served without a token."""
    assert load(f'listen = "{address}"').settings.listen == [address]


def test_listen_from_the_environment_stands_above_the_file(load):
    """TIDEGATE_LISTEN replaces `listen`, and is judged like it."""
    loaded = load('listen = "127.0.0.1:1"', TIDEGATE_LISTEN="127.0.0.1:2, [::1]:2")
    assert loaded.settings.listen == ["127.0.0.1:2", "[::1]:2"]
    with pytest.raises(ConfigError, match="is not an address"):
        load("", TIDEGATE_LISTEN="here")


def test_a_token_of_an_unknown_scope_is_warned_of(load, tmp_path):
    """It is one of a newer version: it grants nothing, and the rest is served."""
    path = tmp_path / "state" / "tokens"
    tokens.new(path, "laptop")
    assert load("").warnings == []
    path.write_text(path.read_text().replace('"scope": "use"', '"scope": "audit"'))
    [warning] = load("").warnings
    assert "the token laptop may do nothing" in warning


def test_damaged_or_open_tokens_file_is_an_error(load, tmp_path):
    """A tokens file that others can read refuses the config instead of opening the door."""
    path = tmp_path / "state" / "tokens"
    tokens.new(path, "laptop")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"auth\.tokens_file.*chmod 600"):
        load("")


@pytest.mark.parametrize("name", ["a\\u0000b", "x/", "", "."])
def test_a_tokens_file_that_cannot_be_one_is_an_error(load, name):
    """Whatever the name is, it is refused with its key."""
    with pytest.raises(ConfigError, match=r"auth\.tokens_file"):
        load(f'auth.tokens_file = "{name}"')


def test_first_tokens_place_is_known_for_a_refused_config(tmp_path):
    """The tokens' place is known even of a config that is refused for want of a token."""
    path = tmp_path / "config.toml"
    path.write_text('listen = "0.0.0.0:1"\nauth.tokens_file = "mine"')
    assert config.tokens_path(path, tmp_path) == tmp_path / "mine"


def test_key_comes_from_the_environment(load):
    """`api_key_env` leads to the key in the environment."""
    loaded = load(f'{BOX}api_key_env = "BOX_KEY"', BOX_KEY=f"{CANARY}\n")
    assert loaded.secrets == {"box": CANARY}
    assert CANARY not in repr(loaded)


def test_key_comes_from_a_private_file_beside_the_config(load, tmp_path):
    """`api_key_file` is relative to the config and must be private."""
    key = tmp_path / "box.key"
    key.write_text(CANARY + "\n")
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        load(f'{BOX}api_key_file = "box.key"')
    assert CANARY not in str(caught.value)
    key.chmod(0o600)
    assert load(f'{BOX}api_key_file = "box.key"').secrets == {"box": CANARY}


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_key_header_can_be_chosen(load, header):
    """Both places that servers look for a key in can be named; without it the host decides."""
    [upstream] = load(f'{BOX}api_key_header = "{header}"').settings.upstreams
    assert upstream.api_key_header == header
    assert load(BOX).settings.upstreams[0].api_key_header is None


def test_settings_are_read_without_the_keys(tmp_path):
    """A command of another user than the service's may find no key; the settings it can read."""
    path = tmp_path / "config.toml"
    path.write_text(f'{BOX}api_key_env = "MISSING"\n[drain]\nstop_limit_s = 7\n')
    assert config.read_settings(path).drain.stop_limit_s == 7
    path.write_text('listen = 7\n[auth]\ntokens_file = ""\n')
    with pytest.raises(ConfigError) as error:
        config.read_settings(path)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == [
        "listen",
        "auth.tokens_file",
    ]


def test_unknown_key_header_names_the_choices(load):
    """Any other header, or another way to write one, is refused with the two there are."""
    for header in ("X-API-Key", "cookie", ""):
        with pytest.raises(ConfigError, match=r'must be "authorization" or "x-api-key"'):
            load(f'{BOX}api_key_header = "{header}"')


def test_key_that_a_service_gets_as_a_credential_is_found_without_it(load, tmp_path):
    """`tidegate check` by root looks where the unit loads its credentials from."""
    with pytest.raises(ConfigError, match="there is no such file"):
        load(f'{BOX}api_key_file = "box.key"')
    kept = tmp_path / "credentials"
    kept.mkdir(mode=0o700)
    (kept / "box.key").write_text(CANARY)
    (kept / "box.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        load(f'{BOX}api_key_file = "box.key"')
    (kept / "box.key").chmod(0o600)
    assert load(f'{BOX}api_key_file = "box.key"').secrets == {"box": CANARY}


@pytest.mark.parametrize("file", ["box.key", "tidegate_box.key"])
def test_key_comes_from_systemd_credentials(file: str, load, tmp_path):
    """A credential of that name is taken first, whatever its mode: systemd guards the directory."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / file).write_text(CANARY)
    (credentials / file).chmod(0o440)
    loaded = load(f'{BOX}api_key_file = "box.key"', CREDENTIALS_DIRECTORY=str(credentials))
    assert loaded.secrets == {"box": CANARY}


@pytest.mark.parametrize(
    "line",
    [
        f'api_key = "{CANARY}"',
        f'api_key_env = "{CANARY}"',
        'api_key_env = ""',
        'api_key_env = "EMPTY"',
        'api_key_env = "TWO_LINES"',
        'api_key_file = ""',
        'api_key_file = "a\\u0000b"',
        'api_key_file = "~no-such-user/x"',
        'api_key_file = "missing.key"',
        'api_key_env = "GOOD"\napi_key_file = "x"',
        f"api_key_env = ['{CANARY}']",
        f'api_key_header = "{CANARY}"',
    ],
)
def test_keys_that_are_none_are_refused_and_never_repeated(load, line):
    """A key in the wrong place or form is an error whose text does not hold it."""
    with pytest.raises(ConfigError, match=r"upstream\[0\]\.api_key") as caught:
        load(f"{BOX}{line}", EMPTY=" ", TWO_LINES=f"{CANARY}\r\nx: y", GOOD=CANARY)
    assert CANARY not in str(caught.value)


def test_unusual_periods_of_growth_are_accepted_with_a_warning(load):
    """Short ones take warming up for a leak, which is said in words; the usual ones need none."""
    [warning] = load("[memory.growth]\nskip_s = 1").warnings
    assert warning.startswith("memory.growth: the periods are not the usual ones")
    assert load("[memory.growth]").warnings == []


def test_a_budget_that_is_too_small_for_something_is_warned_of(load):
    """Under the least, and for requests as large as they may be."""
    [least, body] = load('memory.budget = "128MiB"').warnings
    assert least.startswith("memory.budget: 128MiB counts as 200MiB")
    assert body.startswith("limits.max_body: of 32MiB no more than about 20MiB fits")
    assert load('memory.budget = "200MiB"\nlimits.max_body = "8MiB"').warnings == []
    assert load('memory.budget = "512MiB"').warnings == []


def test_a_journal_that_memory_has_no_room_for_is_warned_of(load):
    """Only where it is to be in memory, and only where more was asked for than is usual."""
    large = 'memory.budget = "512MiB"\n[journal]\nmax = "200MiB"\n'
    [warning] = load(large).warnings
    assert "journal.max: in memory no more than 100MiB of 200MiB" in warning
    assert load(f'{large}place = "disk"').warnings == []
    assert load('limits.max_body = "8MiB"\nmemory.budget = "200MiB"').warnings == []
    assert load('[journal]\nmax = "200MiB"').warnings == []  # with no budget of its own


def test_recycle_limit_below_the_longest_run_is_warned_of(load):
    """A recycle that may cut answers is said so, also when only one upstream's limit is longer."""
    assert load("limits.total_s = 3599").warnings == []
    [warning] = load(f"{BOX}limits = {{total_s = 7200}}").warnings
    assert "7230 s" in warning


@given(st.text() | st.binary())
def test_no_text_raises_anything_but_a_config_error(tmp_path_factory, text):
    """Whatever the file holds, the answer is a config or a ConfigError."""
    path = tmp_path_factory.mktemp("any") / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        config.load(path, path.parent, {})


KEYS = st.sampled_from(
    ["listen", "limits", "memory", "upstream", "model", "auth", "name", "url", "targets", "idle_s"]
)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_no_table_raises_anything_but_a_config_error(tmp_path_factory, table):
    """Values of every wrong type in every place are answered with a ConfigError at most."""
    path = tmp_path_factory.getbasetemp() / "table.toml"
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in table.items()))
    with contextlib.suppress(ConfigError):
        config.load(path, path.parent, {})


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
        case _:
            return repr(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0.5", 0.5),
        ('"90s"', 90.0),
        ('"2m"', 120.0),
        ('"2 min"', 120.0),
        ('"1h30m"', 5400.0),
        ('" 1h 30m "', 5400.0),
        ('"1.5h"', 5400.0),
        ('"1d"', 86400.0),
        ('"500ms"', 0.5),
    ],
)
def test_durations_are_read_as_people_write_them(load, text, seconds):
    """Beside the number of seconds, wherever a key ends in `_s`, of an upstream's limits too."""
    box = '[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:1"\n[upstream.limits]\n'
    settings = load(f"[limits]\ntotal_s = {text}\n{box}idle_s = {text}").settings
    assert settings.limits.total_s == pytest.approx(seconds)
    assert settings.upstreams[0].limits.idle_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4194304", 4 << 20),
        ('"4MiB"', 4 << 20),
        ('"4MB"', 4_000_000),
        ('"4mb"', 4_000_000),
        ('"1.5 GB"', 1_500_000_000),
        ('"500KB"', 500_000),
    ],
)
def test_sizes_are_read_as_people_write_them(load, text, size):
    """With a decimal unit, too; it is what it says: a million bytes."""
    assert load(f"[limits]\nmax_body = {text}").settings.limits.max_body_bytes == size
