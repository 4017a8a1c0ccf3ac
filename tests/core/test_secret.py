"""Keys in texts: a known one is hidden in all its forms, an unknown one is recognised."""

from __future__ import annotations

import json

import pytest

from tidegate.core.secret import HIDDEN, Secret, looks_like_key, name_shown

KEY = 'sk-a/b+c"d\\e-0123456789'


def test_key_is_hidden_wherever_it_stands() -> None:
    """Plain, as JSON writes it, and as JSON may write a slash; what was JSON remains JSON."""
    secret = Secret(KEY)
    assert secret.hide(f"no such key: {KEY}.") == f"no such key: {HIDDEN}."
    for text in (json.dumps({"a": [KEY]}), json.dumps({"a": [KEY]}).replace("/", "\\/")):
        assert json.loads(secret.hide(text)) == {"a": [HIDDEN]}
        assert json.loads(secret.hide_bytes(text.encode())) == {"a": [HIDDEN]}
    assert secret.hide_values({"x-id": KEY, "age": "1"}) == {"x-id": HIDDEN, "age": "1"}
    heads = {"x-id": "7", "age": "1"}
    assert secret.hide_values(heads) is heads  # of which thousands are held


def test_several_are_hidden_and_the_longest_first() -> None:
    """Of two keys of which one begins with the other nothing is left."""
    secret = Secret("sk-0123456", None, "sk-0123456789", "x")
    assert secret.hide("a sk-0123456789 b sk-0123456 c") == f"a {HIDDEN} b {HIDDEN} c"


def test_text_without_the_key_stays_as_it_is() -> None:
    """Byte for byte, whatever it is."""
    assert Secret(KEY).hide_bytes(b"\xff\x00 sk-a/b+c") == b"\xff\x00 sk-a/b+c"


@pytest.mark.parametrize("key", [None, "", "none", "sk-1"])
def test_what_is_too_short_for_a_secret_hides_nothing(key: str | None) -> None:
    """A key such as "none" is in every other word."""
    assert Secret(key).hide("none of them; sk-1") == "none of them; sk-1"


def test_secret_shows_nothing_of_itself() -> None:
    """A traceback or a log that has it shows that there is one."""
    assert KEY not in repr(Secret(KEY))


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-AbCdEfGhIjKlMnOpQrStUv",
        "box/sk-ant-api03-AAAAAAAAAAAAAAAAAAAA",
        "hf_AbCdEfGhIjKlMnOpQr",
        "tg-x1YxSdJ4hMfW0b7oLzQ2",
        "AIzaSyA1234567890abcdefghijklmnop",
        "gateway/0123456789abcdef0123",
    ],
)
def test_key_is_recognised(text: str) -> None:
    """By how the keys of clouds begin, or because only chance makes such a word."""
    assert looks_like_key(text)


@pytest.mark.parametrize(
    "text",
    [
        "Qwen2.5-Coder-32B-Instruct-Q4_K_M.gguf",
        "hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
        "meta-llama/Meta-Llama-3.1-405B-Instruct",
        "claude-3-5-sonnet-20241022",
        "text-embedding-3-large",
        "DeepSeek-R1-Distill-Qwen-32B",
        "http://192.168.178.20:11434/v1",
        "llama-server.home.example.org:8080",
        "sk-lora",
        "limits.disconnect_grace_s",
    ],
)
def test_name_is_not_taken_for_a_key(text: str) -> None:
    """Names of models, hosts and settings are made of shorter or plainer parts."""
    assert not looks_like_key(text)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3:8b",
        "meta-llama/Llama-3.1-8B-Instruct",
        "hf.co/bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M",
        "claude-sonnet-4-20250514",
        "@cf/meta/llama-3.1-8b-instruct",
        "名前:8b",
    ],
)
def test_a_model_is_called_by_its_name(name: str) -> None:
    """As servers call theirs."""
    assert name_shown(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "tell me a story",
        "a\nb",
        "",
        "m" * 121,
        "sk-abcdefghijklmnopqrstuvwx",
        "box/tg-Zk3xq9Lw2Vb7Nt5Rm8Ys",
        "\u202egnp",
    ],
)
def test_of_what_is_no_name_only_the_size_is_told(text: str) -> None:
    """A client may have put a prompt or a key there."""
    assert name_shown(text) == f"(a name of {len(text)} characters)"
