"""Where an upstream is and what every request to it carries, for gateway and doctor alike."""

from __future__ import annotations

import pytest

from tidegate.core.settings import HeaderSource, Upstream
from tidegate.core.upstreams.address import address_of


@pytest.mark.parametrize(
    ("url", "prefix", "root"),
    [
        ("http://h", "/v1", ""),
        ("http://h/", "/v1", ""),
        ("http://h/proxy/v1/", "/proxy/v1", "/proxy"),
        ("https://h/deep/api", "/deep/api", "/deep/api"),
        ("unix:/run/x.sock", "/v1", ""),
        ("unix:/run/x.sock:/demo", "/demo", "/demo"),
    ],
)
def test_a_bare_host_means_v1_and_a_path_is_a_base_url(url: str, prefix: str, root: str) -> None:
    """And the server begins where the path does, but for /v1."""
    address = address_of(Upstream(name="box", url=url), {})
    assert (address.prefix, address.root) == (prefix, root)


@pytest.mark.parametrize(
    ("url", "header", "sent"),
    [
        ("http://h", None, ("authorization", "Bearer sk-1")),
        ("http://h", "x-api-key", ("x-api-key", "sk-1")),
        ("https://API.Anthropic.com/v1", None, ("x-api-key", "sk-1")),
        ("https://api.anthropic.com", "authorization", ("authorization", "Bearer sk-1")),
    ],
)
def test_the_key_goes_where_the_host_is_known_to_look(
    url: str, header: str | None, sent: tuple[str, str]
) -> None:
    """Or where the config says."""
    address = address_of(Upstream(name="box", url=url, api_key_header=header), {})
    assert (address.key_header, address.key_value("sk-1")) == sent


def test_secret_headers_take_the_place_of_what_names_them_and_stay_out_of_sight() -> None:
    """Fixed ones come first, in the config's order; a User-Agent is one in any letters."""
    headers = {"X-Title": "at home", "X-Gate": HeaderSource(env="GATE"), "user-AGENT": "mine/1"}
    upstream = Upstream(name="box", url="http://h", headers=headers)
    address = address_of(upstream, {"X-Gate": "open sesame"})
    assert list(address.headers.items()) == [
        ("X-Title", "at home"),
        ("user-AGENT", "mine/1"),
        ("X-Gate", "open sesame"),
    ]
    assert address.names_agent
    assert not address_of(Upstream(name="box", url="http://h"), {}).names_agent
    assert "sesame" not in repr(address)


@pytest.mark.parametrize("url", ["http://user:sesame@h", "http://" + "a" * 64, "sesame"])
def test_a_url_that_cannot_be_used_is_not_repeated(url: str) -> None:
    """It may hold a key."""
    with pytest.raises(ValueError, match="its url must") as caught:
        address_of(Upstream(name="box", url=url), {})
    assert url not in str(caught.value)
