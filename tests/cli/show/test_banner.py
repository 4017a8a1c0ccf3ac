"""What is printed once it serves: a line that really works when it is pasted."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys

import pytest

from tidegate.cli.show import banner
from tidegate.config import places
from tidegate.core.protocol.worker import Ready


@pytest.fixture
def here(tmp_path):
    """Places without a config file."""
    return places.find(config=tmp_path / "config.toml", state_dir=tmp_path, runtime_dir=tmp_path)


def test_banner_shows_where_it_is_and_what_it_found(here, tmp_path):
    """Base URL, what was found, config and log are all there."""
    ready = Ready(pid=1, found=["Ollama at http://127.0.0.1:11434"], model="qwen3")
    text = banner.banner_text(
        ready, ["127.0.0.1:8433", "[::1]:8433"], here, tmp_path / "x.log", has_tokens=False
    )
    assert "Base URL  http://127.0.0.1:8433/v1\n            http://[::1]:8433/v1" in text
    assert "Ollama at http://127.0.0.1:11434" in text
    assert f"{here.config_file} (none there; defaults)" in text
    assert str(tmp_path / "x.log") in text
    assert "Authorization" not in text


def test_banner_tells_where_the_token_goes(here):
    """With tokens the line to try holds the header, and the banner says how to fill it."""
    text = banner.banner_text(Ready(pid=1), ["127.0.0.1:1"], here, None, has_tokens=True)
    assert '-H "Authorization: Bearer $TIDEGATE_TOKEN"' in text
    assert "this terminal" in text


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8433", "http://127.0.0.1:8433/v1"),
        ("0.0.0.0:80", "http://127.0.0.1:80/v1"),
        ("[::]:80", "http://[::1]:80/v1"),
        ("box.local:80", "http://box.local:80/v1"),
    ],
)
def test_base_url_is_one_that_this_computer_can_use(address, url):
    """An address that means every interface is shown as the loopback one."""
    assert banner.base_url(address) == url


def test_curl_line_survives_the_shell():
    """A model's name with quotes in it reaches the server as it is."""
    words = shlex.split(banner.curl_line("127.0.0.1:1", 'it\'s "x" $HOME', has_tokens=False))
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:1/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == 'it\'s "x" $HOME'
    assert body["stream"] is True


def test_curl_line_for_a_unix_socket():
    """A Unix socket is given to curl with its own flag."""
    words = shlex.split(banner.curl_line("unix:/run/a b.sock", "demo", has_tokens=False))
    assert words[2:4] == ["--unix-socket", "/run/a b.sock"]
    assert words[4] == "http://localhost/v1/chat/completions"


def test_full_pipe_does_not_stop_the_watchdog(monkeypatch):
    """A reader that does not read costs the banner, not the daemon."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(write_end, b"x" * 4096):
            pass
    os.set_blocking(write_end, True)
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        banner.print_calmly("hello")


def test_reader_that_has_gone_is_no_error(monkeypatch):
    """A closed pipe is no reason not to serve."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        banner.print_calmly("hello")


def test_closed_stdout_is_no_error(monkeypatch):
    """Python has no stdout at all after `>&-`; the banner goes nowhere, and it serves."""
    monkeypatch.setattr(sys, "stdout", None)
    banner.print_calmly("hello")
