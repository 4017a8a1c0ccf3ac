"""What `check` lets pass is what a worker can start with."""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  (loaded before the first example)
import socket

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tidegate.config.check import find_problems
from tidegate.core.settings import Settings, Upstream
from tidegate.gateway.api import routes
from tidegate.gateway.gateway import Gateway

LONG = "a" * 64
parts = st.sampled_from(
    ["http://", "https://", "unix:/", "/", ":", "[", "]", "::1", "%", "%41", ".", "..", LONG, "٣",
     "xn--", "-", "_", "@", "127.0.0.1", "1.2.3", "80", "0", "99999", "\r\n", "\0", "ß", "a", "é"]
)  # fmt: skip
words = st.lists(st.one_of(parts, st.text(max_size=3)), max_size=7).map("".join)


@pytest.fixture
def no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is looked up, but each is encoded as a resolver would."""

    def look_up(host: str | bytes, *arguments: object, **more: object) -> list[object]:
        if isinstance(host, str):
            host.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    # Or numbers would be connected to without asking, wherever they lead.
    monkeypatch.setattr("asyncio.base_events._ipaddr_info", lambda *_, **__: None)


async def start(chosen: Settings) -> None:
    """As a worker does, up to the moment before it is ready."""
    gateway = Gateway(1, "", routes)
    gateway.configure(chosen, [], {})
    await gateway.open()
    for pool in gateway.catalog.pools():
        assert "its url" not in str(pool.last_error)
        assert "Error" not in str(pool.last_error)  # none that has no words of its own
    await gateway.close()


@pytest.mark.usefixtures("no_resolver")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(words, words.map("http://".__add__), words.map("http://box".__add__)))
@example(f"http://{LONG}:80")
@example("http://box..lan")
@example("http://box:٣")
@example("http://box:0")
@example("unix:/tmp/x:/\r\nX: y")
@example("unix:/tmp/x:/é")
@example("unix:/tmp/" + "x" * 200)
def test_any_text_as_a_url_is_refused_or_a_worker_starts_with_it(url: str) -> None:
    """There is no url that passes the check and ends a worker."""
    chosen = Settings(upstreams=[Upstream(name="box", url=url)])
    if not find_problems(chosen):
        asyncio.run(start(chosen))


@given(st.one_of(words, words.map("*.".__add__), words.map("box".__add__)))
@example(f"{LONG}.lan")
@example("*.1.2.3.4")
@example("a..b")
@example("box:٣")
@example("0x1")
def test_any_text_in_allowed_hosts_is_refused_or_a_worker_starts_with_it(host: str) -> None:
    """What the check lets pass is what the worker's own rules can read."""
    chosen = Settings(allowed_hosts=[host], upstreams=[])
    if not find_problems(chosen):
        asyncio.run(configure(chosen))


async def configure(chosen: Settings) -> None:
    Gateway(1, "", routes).configure(chosen, [], {})
