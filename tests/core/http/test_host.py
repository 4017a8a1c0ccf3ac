"""Names are read strictly, and only those that can't be a stranger's are let in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.host import (
    HostRules,
    is_home_name,
    is_own_listener,
    is_same_origin,
    parse_authority,
    parse_pattern,
)


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("localhost", "localhost", None),
        ("LocalHost:8433", "localhost", 8433),
        ("box.", "box", None),
        ("my_service:80", "my_service", 80),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]", "::1", None),
        ("[::0001]:65535", "::1", 65535),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1", 80),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
    ],
)
def test_a_host_is_read(text: str, name: str, port: int | None) -> None:
    """Names and addresses come out in one spelling."""
    authority = parse_authority(text)
    assert (authority.name, authority.port) == (name, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8433",
        "box:",
        "box:0",
        "box:65536",
        "box:+80",
        "box:80:80",
        "user@box",
        "box/public?y=",
        "x/public?y=",
        "box path",
        "box#",
        "box\\evil",
        "a..b",
        ".box",
        "-box",
        "box-",
        "box..",
        "%6cocalhost",
        "bücher.example",
        "\u2488localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.0.0.01",
        "127.0.0.256",
        "1.2.3.4.5",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[fe80::1%eth0]",
        "[v1.x]",
        "[127.0.0.1]",
        "::1",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "box,evil",
        "box\x00",
        "box\n",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    """Nothing is guessed: what the grammar does not know is an error."""
    with pytest.raises(ValueError, match=r"."):
        parse_authority(text)


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_a_value_error(text: str) -> None:
    """No text makes the parser fail otherwise, and what it accepts holds no trick."""
    try:
        authority = parse_authority(text)
    except ValueError:
        return
    assert not set(authority.name) & set("/@?#\\%[] \x00")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("localhost", True),
        ("localhost:3000", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("10.1.2.3:8433", True),
        ("172.16.0.1", True),
        ("172.32.0.1", False),
        ("192.168.1.5", True),
        ("169.254.1.1", True),
        ("100.100.1.1", True),
        ("[::1]:8433", True),
        ("[fe80::1]", True),
        ("[fd00::1]", True),
        ("[::ffff:192.168.1.5]", True),
        ("[::ffff:8.8.8.8]", False),
        ("[::]", False),
        ("0.0.0.0", False),
        ("8.8.8.8", False),
        ("[2001:db8::1]", False),
        ("box", True),
        ("box.lan:80", True),
        ("Mac-mini.local", True),
        ("local", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("box.evil.example", False),
        ("good.example", True),
        ("sub.good.example", False),
        ("a.wild.example", True),
        ("a.b.wild.example", True),
        ("wild.example", False),
        ("evilwild.example", False),
        ("ported.example:8433", True),
        ("ported.example:8434", False),
        ("ported.example", False),
        ("plain.example", True),
        ("1.1.1.1", True),
    ],
)
def test_only_names_of_this_server_are_allowed(text: str, allowed: bool) -> None:
    """Local addresses, own names and the setting's entries pass; a stranger's name does not."""
    rules = HostRules(
        [
            "good.example",
            "*.wild.example",
            "ported.example:8433",
            "plain.example:80",
            "1.1.1.1",
        ],
        "Box.lan",
    )
    assert rules.allow(parse_authority(text)) is allowed


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("nas", True),
        ("NAS.:8433", True),
        ("tidegate_1:80", True),
        ("host.docker.internal:8433", True),
        ("gateway.containers.internal", True),
        ("nas.lan", True),
        ("a.b.lan", True),
        ("nas.home.arpa", True),
        ("app.localhost:3000", True),
        ("home.arpa", False),
        ("nas.arpa", False),
        ("evilhome.arpa", False),
        ("evil.example", False),
        ("nas.lan.evil.example", False),
        ("evil-lan.example", False),
        ("internal.example", False),
        ("nas.home", False),
        ("8.8.8.8", False),
        ("[2001:db8::1]", False),
    ],
)
def test_a_homes_own_names_are_those_that_no_public_resolver_knows(text: str, is_one: bool) -> None:
    """One label, or below a zone that is kept for homes; and never an address."""
    assert is_home_name(parse_authority(text)) is is_one


@pytest.mark.parametrize(
    "text", ["http://good.example", "*", "*.", "*.1.2.3.4", "a.*.b", "good.example/", ""]
)
def test_a_bad_entry_of_allowed_hosts_is_named(text: str) -> None:
    """The owner is told which entry of the setting is wrong."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_pattern(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://box:8433", "box:8433", True),
        ("http://BOX:8433", "box:8433", True),
        ("https://chat.example", "chat.example", True),
        ("https://chat.example", "chat.example:443", True),
        ("http://box", "box:80", True),
        ("http://[::1]:8433", "[::1]:8433", True),
        ("http://box:3000", "box:8433", False),
        ("http://box", "box:8433", False),
        ("http://evil.example:8433", "box:8433", False),
        ("null", "box:8433", False),
        ("", "box:8433", False),
        ("box:8433", "box:8433", False),
        ("file://", "box:8433", False),
        ("chrome-extension://box:8433", "box:8433", False),
        ("http://box:8433/", "box:8433", False),
        ("http://user@box:8433", "box:8433", False),
        ("http://box:8433, http://box:8433", "box:8433", False),
    ],
)
def test_an_origin_is_the_same_only_when_host_and_port_are(
    origin: str, host: str, same: bool
) -> None:
    """The scheme only fills in its usual port."""
    assert is_same_origin(origin, parse_authority(host)) is same


@pytest.mark.parametrize(
    ("address", "is_own"),
    [
        ("unix:/run/x.sock", True),
        ("127.0.0.1:8433", True),
        ("127.9.9.9:1", True),
        ("[::1]:8433", True),
        ("localhost:8433", True),
        ("LOCALHOST:8433", True),
        ("0.0.0.0:8433", False),
        ("[::]:8433", False),
        ("[::ffff:127.0.0.1]:8433", False),
        ("192.168.1.7:8433", False),
        ("localhost.example:8433", False),
        ("127.1:8433", False),
    ],
)
def test_where_only_this_computer_reaches_a_server(address: str, is_own: bool) -> None:
    """What is not surely so is not: an open address without a token is what it guards against."""
    assert is_own_listener(address) is is_own
