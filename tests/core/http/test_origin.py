"""Origins of pages: entries are read strictly, and a request's is compared with them as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.origin import OriginRules, parse_origin

ENTRIES = [
    "https://chat.example.com",
    "http://192.168.1.7:3000",
    "HTTPS://Upper.Example.com:443",
    "http://[FD00::0001]:8080",
    "http://plain.example:80",
    "https://*.wild.example.com",
    "https://*.ported.example.com:8443",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "app://obsidian.md",
]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://chat.example.com", True),
        ("http://chat.example.com", False),
        ("https://chat.example.com:443", False),  # no browser writes that
        ("https://chat.example.com:8443", False),
        ("https://chat.example.com/", False),
        ("https://chat.example.com.evil.example", False),
        ("https://evil.example/https://chat.example.com", False),
        ("https://user@chat.example.com", False),
        ("https://xchat.example.com", False),
        ("https://chat.example.com https://evil.example", False),
        ("https://chat.example.com, https://evil.example", False),
        ("http://192.168.1.7:3000", True),
        ("http://192.168.1.7", False),
        ("http://192.168.1.7:30000", False),
        ("https://upper.example.com", True),
        ("http://[fd00::1]:8080", True),
        ("http://plain.example", True),
        ("https://a.wild.example.com", True),
        ("https://a.b.wild.example.com", True),
        ("https://A.wild.example.com", False),
        ("https://a.wild.example.com.", False),
        ("https://a.wild.example.com:443", False),
        ("https://*.wild.example.com", False),
        ("https://wild.example.com", False),
        ("https://evilwild.example.com", False),
        ("http://a.wild.example.com", False),
        ("https://a.wild.example.com:8443", False),
        ("https://a.wild.example.com.evil.example", False),
        ("https://evil.example/a.wild.example.com", False),
        ("https://evil.example#.wild.example.com", False),
        ("https://evil.example\\.wild.example.com", False),
        ("https://.wild.example.com", False),
        ("https://a.ported.example.com:8443", True),
        ("https://a.ported.example.com", False),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", True),
        ("app://obsidian.md", True),
        ("app://obsidian.md.evil", False),
        ("null", False),
        ("", False),
        ("*", False),
    ],
)
def test_only_pages_of_the_entries_may(origin: str, allowed: bool) -> None:
    """As a browser writes an origin, and in no other spelling."""
    assert OriginRules(ENTRIES).allow(origin) is allowed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("*", "strangers"),
        ("null", "strangers"),
        ("", "begins with http"),
        ("chat.example.com", "begins with http"),
        ("https://", "not a host name"),
        ("https://chat.example.com/", "nothing stands behind"),
        ("https://chat.example.com/app", "nothing stands behind"),
        ("https://chat.example.com?x", "nothing stands behind"),
        ("https://user:secret@chat.example.com", "no user before it"),
        ("https://chat.example.com:0", "a port"),
        ("https://b\u00fccher.example", "not an origin"),
        ("http://*.example.com", r"by https:// alone"),
        ("https://*.com", "below one of yours"),
        ("https://*.192.168.1.7", "below one of yours"),
        ("https://*", "not a host name"),
        ("https://a.*.example.com", "not a host name"),
        ("https://*.*.example.com", "not a host name"),
        ("file://", "not a host name"),
        ("https://127.1", "."),
        ("https://a.example, https://b.example", "nothing stands behind"),
    ],
)
def test_a_bad_entry_says_what_is_wrong_and_how_to_write_it(text: str, why: str) -> None:
    """The example is one that is right."""
    with pytest.raises(ValueError, match=why) as caught:
        parse_origin(text)
    assert '"https://chat.example.com"' in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_entry_or_a_value_error(text: str) -> None:
    """And what is an entry has one spelling."""
    try:
        entry = parse_origin(text)
    except ValueError:
        return
    if isinstance(entry, str):
        assert parse_origin(entry) == entry
