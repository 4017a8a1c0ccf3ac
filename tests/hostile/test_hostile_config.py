"""Config and token files of every content: refused with a reason, and the former ones stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakes.gateway import Gateway, StartGateway
from fakes.machine import wait_until
from hostile.configs import CONFIGS, WORDS, read
from hostile.conftest import Tried
from hostile.mutate import every_byte, mutants
from tidegate.config import tokens
from tidegate.core.protocol.control import ControlRequest
from tidegate.watchdog.control.client import ask

MUTANTS = 2_500
RELOAD = ControlRequest(verb="reload")
LIMIT_S = 30.0
LARGE = {
    "many unknown keys": b"".join(b"key%d = 1\n" % n for n in range(20_000)),
    "a deep key": b".".join([b"a"] * 30_000) + b" = 1\n",
    "a deep list": b"x = " + b"[" * 50_000 + b"]" * 50_000 + b"\n",
    "a deep table": b"x = " + b"{a = " * 20_000 + b"1" + b"}" * 20_000 + b"\n",
    "an endless integer": b"x = " + b"9" * 100_000 + b"\n",
    "an endless float": b"x = 0." + b"9" * 100_000 + b"\n",
    "a long string": b'listen = "' + b"x" * 900_000 + b'"\n',
    "many upstreams": b"".join(
        b'[[upstream]]\nname = "u%d"\nurl = "http://127.0.0.1:1"\n' % n for n in range(5_000)
    ),
    "many upstreams of one name": b'[[upstream]]\nname = "u"\nurl = "http://x"\n' * 5_000,
    "many targets": b'[[model]]\nname = "m"\ntargets = ["a/b"' + b', "a/b"' * 50_000 + b"]\n",
    "many hosts": b'allowed_hosts = ["a"' + b', "!"' * 50_000 + b"]\n",
    "too large": b"# " + b"x" * (3 * 1024 * 1024),
    "a NUL": b"listen = 1\x00",
    "not UTF-8": b'listen = "\xff"',
    "UTF-16": 'listen = "127.0.0.1:1"'.encode("utf-16"),
    "a mark before it": b'\xef\xbb\xbflisten = "127.0.0.1:1"',
    "a long label": b'[[upstream]]\nname="u"\nurl="http://' + b"a" * 64 + b'.example"\n',
}


def test_changed_configs_are_read_or_refused(tmp_path: Path, tried: Tried) -> None:
    """Every refusal is in words; nothing else comes out of the reader."""
    for text in mutants(CONFIGS, WORDS, "config", MUTANTS):
        _read(text, tmp_path)
    tried(MUTANTS)


def _read(text: bytes, folder: Path) -> None:
    try:
        read(text, folder)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}: {text[:300]!r}") from error


def test_every_byte_at_every_place_of_a_line(tmp_path: Path, tried: Tried) -> None:
    """Each byte where a key, an equals sign, a quote or a line's end stands."""
    texts = list(every_byte(b'[limits]\nmax_body="1MiB"\n'))
    for text in texts:
        _read(text, tmp_path)
    tried(len(texts))


# Each took minutes where a reader was quadratic; a minute is what the service manager waits.
@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_large_configs_cost_no_more_than_their_length(
    tmp_path: Path, tried: Tried, text: bytes
) -> None:
    """What is too large, too deep or too many is refused before it is judged."""
    _read(text, tmp_path)
    tried(1)


TOKENS = b'[{"name":"laptop","sha256":"' + b"0" * 64 + b'","created":"2026-01-01","scope":"read"}]'


def test_changed_token_files_are_read_or_refused(tmp_path: Path, tried: Tried) -> None:
    """A damaged file of tokens is one error of ours, whatever is in it."""
    path = tmp_path / "tokens"
    words = [b"null", b"\xff", b"\\ud800", b"[" * 2_000, b"9" * 5_000, b'"name":"x",', b"\x00"]
    texts = [*mutants([TOKENS, b"[]", b""], words, "tokens", 1_000), *every_byte(TOKENS[:12])]
    for text in texts:
        path.write_bytes(text)
        path.chmod(0o600)
        try:
            tokens.warnings(path, tokens.read(path))
        except tokens.TokenError:
            pass
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}: {text[:300]!r}") from error
    tried(len(texts))


def test_a_running_watchdog_keeps_the_config_it_has(gateway: StartGateway, tried: Tried) -> None:
    """A watched config and a file of tokens that become nonsense are refused, and it serves on."""
    running = gateway()
    good = running.config.read_bytes()
    texts = [*LARGE.values(), *mutants(CONFIGS, WORDS, "live", 40)]
    for text in texts:
        new = running.config.with_suffix(".new")
        new.write_bytes(_elsewhere(text))
        new.replace(running.config)
        ask(running.runtime_dir, RELOAD, LIMIT_S)
        assert running.process.poll() is None, text[:300]
    state = running.state_dir / "tokens"
    for text in (b"\xff", b'[{"name":"\xff"}]', b"[" * 100_000, b'"\\ud800"', b"{}"):
        running.config.write_bytes(good)
        descriptor = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        ask(running.runtime_dir, RELOAD, LIMIT_S)
        assert running.process.poll() is None, text
    state.unlink()
    # One of them may have been a good one that needs a new worker, which is still taking over.
    wait_until(lambda: ask(running.runtime_dir, RELOAD, LIMIT_S).ok, LIMIT_S, "it is reloaded")
    assert _is_serving(running)
    tried(len(texts) + 5)


def _elsewhere(text: bytes) -> bytes:
    """A changed config that is good by chance must not take another port on this machine."""
    return text.replace(b"8433", b"0")


def _is_serving(running: Gateway) -> bool:
    return bool(running.status()["worker"]["state"] == "serving") and running.is_ready()
