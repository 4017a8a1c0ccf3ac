"""Which fixed headers an upstream may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.header import MAX_VALUE_BYTES, is_value, name_problem


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Host", "Content-Length", "Transfer-Encoding", "TE", "Trailer", "Expect"], "tidegate"),
        (["Connection", "Keep-Alive", "Upgrade", "HTTP2-Settings", "Proxy-Connection"], "tidegate"),
        (["Proxy-Authorization", "Content-Type", "Content-Encoding", "Accept"], "tidegate"),
        (["Accept-Encoding", "Range", "x-tidegate-hops", "X-Tidegate-Owner"], "tidegate"),
        (["Authorization", "X-API-Key"], "api_key_file"),
        (["anthropic-version", "Anthropic-Beta"], "client's"),
        (["", "a b", "a:b", "é", "a\r\nb", "x" * 129, "a\0", "(a)"], "not a header name"),
    ],
)
def test_what_is_not_ones_own_to_fix_is_refused(names: list[str], says: str) -> None:
    """However it is written, and with the reason."""
    for name in names:
        for written in (name, name.lower(), name.upper()):
            assert says in str(name_problem(written))


@pytest.mark.parametrize(
    "name", ["User-Agent", "HTTP-Referer", "X-Title", "api-key", "a.b", "Cookie"]
)
def test_others_may_be_fixed(name: str) -> None:
    """What clouds, proxies and gates in front of them ask for."""
    assert name_problem(name) is None


@given(st.text(max_size=20), st.text(max_size=20))
def test_what_is_let_through_is_one_line(name: str, value: str) -> None:
    """No name and no value ends a line or begins another."""
    if name_problem(name) is None and is_value(value):
        line = f"{name}: {value}"
        assert line.isascii()
        assert line.isprintable()
        assert line.split(": ", 1) == [name, value]
        assert value == value.strip()


def test_values_are_bounded() -> None:
    """What most servers take of a line."""
    assert is_value("x" * MAX_VALUE_BYTES)
    assert not is_value("x" * (MAX_VALUE_BYTES + 1))
    assert not is_value("")
