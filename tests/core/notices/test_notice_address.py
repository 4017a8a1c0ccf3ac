"""Addresses of receivers and of the heartbeat: one grammar, and nothing of them in an error."""

from __future__ import annotations

import pytest

from tidegate.core.notices.address import (
    APPRISE,
    NTFY,
    WEBHOOK,
    parse_address,
    parse_heartbeat_url,
    secrets_in,
    words_in,
)

CANARY = "CANARY-5d1f"


@pytest.mark.parametrize(
    ("text", "kind", "is_tls", "authority", "target", "user"),
    [
        ("ntfy://ntfy.sh/my_topic", NTFY, True, "ntfy.sh", "/my_topic", ""),
        ("ntfys://nas.lan:8443/t", NTFY, True, "nas.lan:8443", "/t", ""),
        ("ntfy://nas:8080/t?secure=false", NTFY, False, "nas:8080", "/t", ""),
        ("ntfy://tk_abc@ntfy.sh/t", NTFY, True, "ntfy.sh", "/t", "tk_abc"),
        ("ntfy://me:p%40ss@ntfy.sh/t", NTFY, True, "ntfy.sh", "/t", "me:p@ss"),
        ("https://h.example/hook/x?a=b&c", WEBHOOK, True, "h.example", "/hook/x?a=b&c", ""),
        ("http://[::1]:9", WEBHOOK, False, "[::1]:9", "/", ""),
        ("http://u:p@h/x", WEBHOOK, False, "h", "/x", "u:p"),
    ],
)
def test_addresses_are_taken_apart(
    text: str, kind: str, is_tls: bool, authority: str, target: str, user: str
) -> None:
    """Into what a request needs."""
    found = parse_address(text)
    assert (found.kind, found.target, found.user) == (kind, target, user)
    assert (found.url.is_tls, found.url.authority) == (is_tls, authority)


@pytest.mark.parametrize("text", ["tgram://bot/chat", "mailto://me:pw@mail.example", "discord://x"])
def test_other_schemes_are_apprises(text: str) -> None:
    """Which of them there are, it knows."""
    assert parse_address(text).kind == APPRISE


@pytest.mark.parametrize(
    "text",
    [
        "",
        CANARY,
        f"https:/{CANARY}",
        f"ntfy://{CANARY}",
        f"ntfy://ntfy.sh/{CANARY}/x",
        f"ntfy://ntfy.sh/{CANARY}?auth=x",
        f"ntfy://ntfy.sh/{'x' * 65}",
        f"https://h/{CANARY}#x",
        f"https://h/{CANARY} x",
        f"https://h/?{CANARY}\r\nX: y",
        f"https://h/?{CANARY}\x00",
        f"https://{CANARY}@x@h/",
        f"https://a/{CANARY}@h/",
        f"https://h:99999/{CANARY}",
        f"https://ü/{CANARY}",
        f"https://%0d{CANARY}@h/",
        f"https://h/{CANARY}{'x' * 2000}",
    ],
)
def test_what_is_none_is_refused_and_not_repeated(text: str) -> None:
    """Most of what stands there is a secret."""
    with pytest.raises(ValueError, match=r"must|may have") as refused:
        parse_address(text)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("text", ["ntfy://ntfy.sh/t", "https://u:p@h/x", "unix:/x"])
def test_a_heartbeat_is_a_plain_get(text: str) -> None:
    """So it has no topic and no password."""
    with pytest.raises(ValueError, match="must"):
        parse_heartbeat_url(text)
    assert parse_heartbeat_url("https://kuma/api/push/x?status=up").target.endswith("?status=up")


def test_what_an_address_hides() -> None:
    """All of it and its secret parts; words of every day stay in other texts."""
    hook = "https://hooks.example/services/T0AB1/B2/aB3dE5fG7hJ9kL1mN3?status=pending"
    hidden = secrets_in(hook)
    assert hook in hidden
    assert "/services/T0AB1/B2/aB3dE5fG7hJ9kL1mN3" in hidden
    assert "aB3dE5fG7hJ9kL1mN3" in hidden
    assert not {"services", "status", "pending", "hooks.example"} & set(hidden)
    assert {"services", "aB3dE5fG7hJ9kL1mN3", "pending"} <= set(words_in(hook))
    assert secrets_in("http://127.0.0.1:8080/") == secrets_in("http://192.168.1.20:8080") == []
    assert "tk_secret" in secrets_in("ntfy://tk_secret@ntfy.sh/t")
    assert "hooks.example" not in words_in(hook)
