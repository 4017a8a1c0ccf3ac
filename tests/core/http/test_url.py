"""An upstream's URL: what is read, and what is refused with its reason."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (what a resolver asks, loaded before the first example)
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.core.http.url import Url, parse_url

LONG = "a" * 64


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://10.0.0.2:8080", Url("10.0.0.2", 8080, False, "10.0.0.2:8080")),
        ("http://Box/", Url("box", 80, False, "Box", path="/")),
        ("https://a.example.com/v1", Url("a.example.com", 443, True, "a.example.com", "", "/v1")),
        ("http://a_b.c-d:1/x%20y", Url("a_b.c-d", 1, False, "a_b.c-d:1", "", "/x%20y")),
        ("http://[::1]:8080", Url("::1", 8080, False, "[::1]:8080")),
        ("https://[FE80::1]", Url("fe80::1", 443, True, "[FE80::1]")),
        (f"http://{LONG[1:]}.lan", Url(f"{LONG[1:]}.lan", 80, False, f"{LONG[1:]}.lan")),
        ("unix:/run/x.sock", Url(socket_path="/run/x.sock")),
        ("unix:/run/ä b.sock:/v1", Url(socket_path="/run/ä b.sock", path="/v1")),
    ],
)  # fmt: skip
def test_a_url_is_taken_apart(text: str, url: Url) -> None:
    """Host, port, TLS, what the Host header says, socket and path."""
    assert parse_url(text) == url


@pytest.mark.parametrize(
    ("url", "is_at_home", "is_neighbour"),
    [
        ("http://127.0.0.1:1234", True, False),
        ("http://localhost:8080", True, False),
        ("http://[::1]:8080", True, False),
        ("unix:/run/llama.sock", True, False),
        ("http://192.168.1.9:8080", True, True),
        ("http://100.64.0.7:8080", True, True),
        ("http://[fd00::9]", True, True),
        ("http://box:8080", True, True),
        ("http://box.lan:8080", True, True),
        ("http://box.local", True, True),
        ("https://api.example.com/v1", False, False),
        ("https://8.8.8.8", False, False),
        ("http://0.0.0.0:8080", False, False),
    ],
)
def test_a_url_is_at_home_or_in_the_world(url: str, is_at_home: bool, is_neighbour: bool) -> None:
    """By private and overlay addresses, names without a dot, and the names of home networks."""
    found = parse_url(url)
    assert (found.is_at_home, found.is_neighbour) == (is_at_home, is_neighbour)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be like"),
        ("box:8080", "must be like"),
        ("http://", "with a host"),
        ("http://:80", "with a host"),
        (f"http://{LONG}:80", "1 to 63 letters"),
        (f"http://box.{LONG}.lan", "1 to 63 letters"),
        ("http://a..b", "1 to 63 letters"),
        ("http://" + ".".join(["a" * 60] * 5), "at most 253"),
        ("http://bücher.example", "xn--"),
        ("http://box:٨٠", "must be ASCII"),
        ("http://box:0", "from 1 to 65535"),
        ("http://box:", "from 1 to 65535"),
        ("http://box:65536", "from 1 to 65535"),
        ("http://box:80x", "from 1 to 65535"),
        ("http://box:-1", "from 1 to 65535"),
        ("http://256.0.0.1", "four numbers"),
        ("http://1.2.3", "four numbers"),
        ("http://[::1", "must be like"),
        ("http://[::1]8080", "must be like"),
        ("http://[::g]", "must be an IPv6 address"),
        ("http://[fe80::1%25eth0]", "without a zone"),
        ("http://user:word@box", "no user or password"),
        ("http://box/a b", "written as %XX"),
        ("http://box/ä", "written as %XX"),
        ("http://box/\r\nX: y", "written as %XX"),
        ("http://box/%zz", "two digits"),
        ("http://box/%", "two digits"),
        ("http://b\tox", "must be like"),
        ("http://box\n", "must be like"),
        ("http://-box", "must be like"),
        ("http://box?key=word", "without [?] and #"),
        ("http://box/#word", "without [?] and #"),
        ("unix:relative", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:/a\0b", "control characters"),
        ("unix:/run/x.sock:v1", "without [?] and #"),
        ("unix:/run/x.sock:/v1\r\nX: y", "written as %XX"),
        ("unix:/run/x.sock:/ä", "written as %XX"),
    ],
)
def test_what_cannot_be_connected_to_is_refused_with_its_reason(text: str, says: str) -> None:
    """The reason says what would be right, and repeats nothing of the URL."""
    with pytest.raises(ValueError, match=says) as caught:
        parse_url(text)
    assert "word" not in str(caught.value).replace("password", "")


url_like = st.builds(
    "".join,
    st.lists(
        st.one_of(
            st.sampled_from(
                ["http://", "https://", "unix:", "/", ":", "[", "]", "::1", "%", ".", "..", LONG,
                 "xn--", "xn--a", "-", "_", "@", "1.2.3.4", "80", "99999", "\r\n", "\0", "٣", "ß"]
            ),
            st.text(max_size=4),
        ),
        max_size=8,
    ),
)  # fmt: skip


@given(st.one_of(st.text(max_size=80), url_like, url_like.map("http://box".__add__)))
@example(f"http://{LONG}")
@example("http://a..b")
@example("http://box:٣")
def test_what_is_read_can_be_connected_to(text: str) -> None:
    """Resolvers can encode the host, the port exists, and lines of a request stay lines."""
    try:
        url = parse_url(text)
    except ValueError:
        return
    assert bool(url.host) != bool(url.socket_path)
    assert "\0" not in url.socket_path
    assert re.fullmatch(r"(/[!-~]*)?", url.path)
    assert re.fullmatch(r"[!-~]+", url.authority)
    if url.host:
        assert url.host.encode("idna").decode() == url.host
        assert 0 < url.port < 65536
