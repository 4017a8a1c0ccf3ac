"""Who comes in, and what everybody else is told."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from fakes.held import held
from gateway.server_rig import Answer, Rig, get, request, serving
from tidegate.core.brake import EVERY_S, FREE, Brake
from tidegate.core.settings import Token, Upstream
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Access, AccessControl, Caller
from tidegate.gateway.server.errors import Refused

KEY = "tg-3f9c2b7d51"
OTHER_KEY = "tg-a8e60419cc"
CANARY = "sk-canary-7f3a"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


TOKENS = (
    Token(name="laptop", sha256=digest(KEY)),
    Token(name="phone", sha256=digest(OTHER_KEY).upper()),
)


def serve_guarded(control: AccessControl, access: Access) -> AbstractAsyncContextManager[Rig]:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        caller = control.authenticate(request, access)
        return web.json_response({"owner": caller.owner, "name": caller.name})

    return serving(handler)


def new_control(tokens: tuple[Token, ...] = (), *allowed_hosts: str) -> AccessControl:
    return AccessControl(allowed_hosts=allowed_hosts, host_name="box", tokens=tokens)


@pytest.fixture
async def free() -> AsyncIterator[Rig]:
    """A server without tokens."""
    async with serve_guarded(new_control((), "good.example"), Access.USE) as rig:
        yield rig


@pytest.fixture
async def guarded() -> AsyncIterator[Rig]:
    """A server with two tokens."""
    async with serve_guarded(new_control(TOKENS), Access.USE) as rig:
        yield rig


def caller_of(answer: Answer) -> Caller:
    assert answer.status == 200, answer.body
    return Caller(**json.loads(answer.body))


# --- request targets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "//evil/admin",
        "//127.0.0.1/",
        "http://127.0.0.1/v1/models",
        "http://evil.example/v1/models",
        "*",
        "/a#b",
        "/a\\b",
        '/"',
        "/\xe4",
        "/\x7f",
    ],
)
async def test_only_a_plain_path_is_a_target(free: Rig, target: str) -> None:
    """Absolute, authority-like and odd targets are refused before anything reads them."""
    method = "OPTIONS" if target == "*" else "GET"
    answer = await free.ask(request(method, target))
    assert answer.status == 400
    assert answer.error["code"] in {"bad_target", "malformed_request"}


async def test_connect_is_refused(free: Rig) -> None:
    """This is no proxy, and a tunnel is never opened."""
    client = await free.client()
    answer = await client.ask(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer.status == 400
    await client.send(get("/after"))
    assert await client.rest() == b""


@pytest.mark.parametrize("target", ["/", "/v1/models?a=b&c=%20", "/v1/models/org%2Fname:7b@x,y;z"])
async def test_plain_paths_pass(free: Rig, target: str) -> None:
    """What clients really ask for is a target."""
    assert (await free.ask(get(target))).status == 200


# --- Host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["x/public?y=", "user@127.0.0.1", "127.0.0.1:", "127.1", ""])
async def test_a_host_that_is_none_is_a_bad_request(free: Rig, host: str) -> None:
    """The grammar comes first."""
    answer = await free.ask(get("/", f"Host: {host}"))
    assert answer.status == 400


async def test_an_http_1_0_request_needs_a_host_too(free: Rig) -> None:
    """Where HTTP does not ask for a Host, we do."""
    answer = await free.ask(b"GET / HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (400, "bad_host")


@pytest.mark.parametrize("host", ["evil.example", "8.8.8.8", "0.0.0.0:8433"])
async def test_a_rebound_name_is_refused_and_the_setting_named(free: Rig, host: str) -> None:
    """A page that resolves its own name to loopback gets nothing, also when nothing is secret."""
    answer = await free.ask(get("/", f"Host: {host}"))
    assert answer.status == 403
    assert "allowed_hosts" in answer.error["message"]


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]", "box", "a.local", "HOST.ok"])
async def test_the_names_of_this_server_pass_on_every_route(access: Access, host: str) -> None:
    """The same names are good for each route."""
    async with serve_guarded(new_control((), "host.ok"), access) as rig:
        client = await rig.client()
        for _ in range(2):  # the second time from memory
            assert (await client.ask(get("/", f"Host: {host}"))).status == 200


async def test_open_routes_check_the_host_too() -> None:
    """Health is open to callers without a token, not to every web page."""
    async with serve_guarded(new_control(TOKENS), Access.OPEN) as rig:
        assert (await rig.ask(get())).status == 200
        assert (await rig.ask(get("/", "Host: evil.example"))).status == 403


HOME = ["nas", "host.docker.internal:8433", "tidegate.lan", "nas.home.arpa", "chat.localhost"]
FIREFOX = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.mark.parametrize("host", HOME)
@pytest.mark.parametrize(
    ("fields", "free_status"),
    [
        ((), 200),
        (("User-Agent: OpenAI/Python 2.41.1",), 200),
        (("User-Agent: node",), 200),
        ((FIREFOX,), 403),
        ((FIREFOX.replace("Mozilla", "MOZILLA"),), 403),
        (("Sec-Fetch-Site: none",), 403),
        (("Sec-Fetch-Site: same-origin",), 403),
        (("Origin: http://{host}",), 403),
        (("Origin: http://{host}", "Sec-Fetch-Site: same-origin", FIREFOX), 403),
    ],
)
async def test_a_homes_own_names_are_for_programs_until_there_is_a_token(
    host: str, fields: tuple[str, ...], free_status: int
) -> None:
    """With a token in force it is the token that decides, whatever sent the request."""
    named = [f"Host: {host}", *(field.format(host=host) for field in fields)]
    async with serve_guarded(new_control(), Access.USE) as rig:
        for method in ("GET", "POST"):
            answer = await rig.ask(request(method, "/", *named))
            assert answer.status == free_status, answer.body
            if free_status == 403:
                assert answer.error["code"] == "host_not_allowed"
                assert "tidegate token new" in answer.error["message"]
    async with serve_guarded(new_control(TOKENS), Access.USE) as rig:
        for method in ("GET", "POST"):
            assert (await rig.ask(request(method, "/", *named))).status == 401
            answer = await rig.ask(request(method, "/", *named, f"x-api-key: {KEY}"))
            assert answer.status == 200


@pytest.mark.parametrize("host", ["llm.example.com", "8.8.8.8:8433", "x.duckdns.org"])
@pytest.mark.parametrize("access", Access)
async def test_a_valid_token_lets_in_under_any_name(access: Access, host: str) -> None:
    """A page that was led here has none. A wrong one is a wrong one, and without any it is 403."""
    async with serve_guarded(new_control(TOKENS), access) as rig:
        named = (f"Host: {host}", FIREFOX)
        for _ in range(2):  # the name itself is not remembered
            assert (await rig.ask(get("/", *named, f"x-api-key: {KEY}"))).status == 200
            assert (await rig.ask(get("/", *named, f"x-api-key: {KEY}x"))).status == 401
            answer = await rig.ask(get("/", *named))
            assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
            assert "send a valid token" in answer.error["message"]
        for bad in ("x/public?y=", "user@127.0.0.1", "127.1"):
            assert (await rig.ask(get("/", f"Host: {bad}", f"x-api-key: {KEY}"))).status == 400


async def test_a_key_lets_in_under_no_name_while_there_is_no_token(free: Rig) -> None:
    """Nothing can be valid then."""
    for fields in ((f"x-api-key: {KEY}",), (f"Authorization: Bearer {KEY}",)):
        assert (await free.ask(get("/", "Host: evil.example", *fields))).status == 403


async def test_wrong_keys_under_a_strange_name_are_braked_too() -> None:
    """Names open no second way to guess."""
    control = braked_control([100.0])
    heard = [
        ask_from(control, "192.0.2.7", CANARY + str(n), host="evil.example")
        for n in range(FREE + 2)
    ]
    assert [status_of(each) for each in heard] == [401] * FREE + [429] * 2


async def test_made_up_names_do_not_fill_the_memory() -> None:
    """The book of accepted names stays small, whatever is asked."""
    control = new_control()
    for n in range(1000):
        mocked = make_mocked_request("GET", "/", CIMultiDict({"Host": f"name-{n}.local"}))
        control.authenticate(mocked, Access.OPEN)
    assert 0 < len({name for name in held(control, str) if name.startswith("name-")}) <= 64


async def test_a_unix_socket_asks_no_host() -> None:
    """Names mean nothing on a Unix socket; the path and the token still do."""
    control = new_control(TOKENS)
    headers = CIMultiDict({"Host": "evil.example", "x-api-key": KEY})
    mocked = make_mocked_request("GET", "/", headers)
    assert control.authenticate(mocked, Access.USE, over_unix=True).name == "laptop"
    with pytest.raises(Refused) as caught:
        control.authenticate(make_mocked_request("GET", "//x", headers), Access.USE, over_unix=True)
    assert caught.value.status == 400
    page = make_mocked_request("POST", "/", CIMultiDict({"Origin": "http://evil.example"}))
    with pytest.raises(Refused) as caught:
        control.authenticate(page, Access.OPEN, over_unix=True)
    assert caught.value.status == 403


# --- other sites -----------------------------------------------------------------------------


WEBSOCKET = ("Connection: Upgrade", "Upgrade: WebSocket")


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("POST", (), 200),
        ("POST", ("Origin: http://127.0.0.1",), 200),
        ("POST", ("Origin: http://127.0.0.1", "Sec-Fetch-Site: same-origin"), 200),
        ("POST", ("Sec-Fetch-Site: none",), 200),
        ("POST", ("Origin: http://127.0.0.1:3000",), 403),
        ("POST", ("Origin: http://evil.example",), 403),
        ("POST", ("Origin: null",), 403),
        ("POST", ("Origin:",), 403),
        ("POST", ("Origin: http://127.0.0.1", "Origin: http://evil.example"), 403),
        ("POST", ("Sec-Fetch-Site: cross-site",), 403),
        ("POST", ("Sec-Fetch-Site: same-site",), 403),
        ("POST", ("Origin: http://127.0.0.1", "Sec-Fetch-Site: cross-site"), 403),
        ("POST", ("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"), 403),
        ("DELETE", ("Origin: http://evil.example",), 403),
        ("PUT", ("Origin: http://evil.example",), 403),
        ("GET", ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site"), 200),
        ("OPTIONS", ("Origin: http://evil.example",), 200),
        ("GET", (*WEBSOCKET, "Origin: http://evil.example"), 403),
        ("GET", (*WEBSOCKET, "Sec-Fetch-Site: cross-site"), 403),
        ("GET", (*WEBSOCKET, "Origin: http://127.0.0.1"), 200),
        ("GET", WEBSOCKET, 200),
    ],
)
async def test_a_page_of_another_site_changes_nothing(
    free: Rig, method: str, fields: tuple[str, ...], status: int
) -> None:
    """What alters something must come from no page, or from one of this very origin."""
    answer = await free.ask(request(method, "/", *fields))
    assert answer.status == status
    if status == 403:
        assert answer.error["code"] == "cross_site"
    assert not any(name.startswith("access-control") for name in answer.headers)


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "key", "name"),
    [
        ((f"Authorization: Bearer {KEY}",), KEY, "laptop"),
        ((f"authorization: bearer   {KEY} ",), KEY, "laptop"),
        ((f"X-API-Key: {OTHER_KEY}",), OTHER_KEY, "phone"),
        ((f"Authorization: Bearer {KEY}", f"x-api-key: {KEY}"), KEY, "laptop"),
        ((f"Authorization: Bearer {KEY}", "x-api-key: nonsense"), KEY, "laptop"),
        ((f"Authorization: Bearer {KEY}", "x-api-key:"), KEY, "laptop"),
        (("Authorization: Bearer sk-of-a-cloud", f"x-api-key: {OTHER_KEY}"), OTHER_KEY, "phone"),
        ((f"Authorization: Basic {KEY}", f"x-api-key: {OTHER_KEY}"), OTHER_KEY, "phone"),
        (
            ("Authorization: Bearer x", f"Authorization: Bearer {KEY}", "x-api-key: y"),
            KEY,
            "laptop",
        ),
        (("x-api-key: sk-\xe4\xf6\xfc", f"Authorization: Bearer {KEY}"), KEY, "laptop"),
    ],
)
async def test_the_valid_key_counts_in_each_form(
    guarded: Rig, fields: tuple[str, ...], key: str, name: str
) -> None:
    """Whichever header it comes in and whatever stands beside it, its SHA-256 is the owner."""
    client = await guarded.client()
    for _ in range(2):  # the second time from memory
        caller = caller_of(await client.ask(get("/", *fields)))
        assert caller == Caller(owner=digest(key), name=name)


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Authorization:",),
        ("Authorization: Bearer",),
        ("Authorization: Bearer ",),
        (f"Authorization: {KEY}",),
        (f"Authorization: Basic {KEY}",),
        (f"Authorization: Bearer {KEY}x",),
        (f"Authorization: Bearer {KEY} {KEY}",),
        (f"Authorization: Bearer {KEY}", f"x-api-key: {OTHER_KEY}"),
        (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {OTHER_KEY}"),
        (f"x-api-key: {KEY}", f"x-api-key: {OTHER_KEY}", "Authorization: Bearer x"),
        ("Authorization: Bearer sk-one", "x-api-key: sk-two"),
        (f"x-api-key: {digest(KEY)}",),
        ("x-api-key: ' OR 1=1 --",),
        ("x-api-key: sk-\xe4\xf6\xfc",),
        ("x-api-key: " + CANARY * 300,),
        (f"Cookie: token={KEY}",),
        (f"api-key: {KEY}",),
    ],
)
async def test_without_one_good_key_nothing_is_served(
    guarded: Rig, fields: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Every other form is a 401 that repeats nothing and is not logged."""
    caplog.set_level(logging.DEBUG, "tidegate")
    answer = await guarded.ask(get("/", *fields))
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error["code"] == "invalid_api_key"
    for secret in (KEY, OTHER_KEY, CANARY):
        assert secret.encode() not in answer.body
        assert secret not in caplog.text


@pytest.mark.parametrize("key", [CANARY * 10_000, f"{KEY}\x00", "", " ", KEY + "\n"])
@pytest.mark.parametrize("form", ["Bearer", "x-api-key"])
async def test_keys_that_the_parser_would_stop_are_refused_here_too(key: str, form: str) -> None:
    """AccessControl does not rely on what reads the heads."""
    headers = CIMultiDict({"Host": "localhost"})
    headers["Authorization" if form == "Bearer" else form] = (
        f"Bearer {key}" if form == "Bearer" else key
    )
    with pytest.raises(Refused) as caught:
        new_control(TOKENS).authenticate(make_mocked_request("GET", "/", headers), Access.USE)
    assert caught.value.status == 401
    assert CANARY not in caught.value.message


async def test_two_valid_keys_of_different_owners_are_told(guarded: Rig) -> None:
    """Whose request it is must not be guessed, and neither key is wrong."""
    for _ in range(30):
        answer = await guarded.ask(
            get("/", f"Authorization: Bearer {KEY}", f"x-api-key: {OTHER_KEY}")
        )
        assert answer.status == 401
        assert "two valid tokens of different owners" in answer.error["message"]


# --- wrong keys ----------------------------------------------------------------------------------


def braked_control(now_s: list[float]) -> AccessControl:
    return AccessControl(
        allowed_hosts=[], host_name="box", tokens=TOKENS, brake=Brake(), clock=lambda: now_s[0]
    )


def ask_from(
    control: AccessControl | Gateway,
    peer: str,
    *keys: str,
    over_unix: bool = False,
    host: str = "localhost",
) -> Caller | Refused:
    """What a client at that address hears. Loopback is all that a test may connect from."""
    headers = CIMultiDict({"Host": host})
    for key in keys:
        headers.add("x-api-key", key)
    mocked = make_mocked_request("GET", "/", headers).clone(remote=peer)
    mocked.protocol.over_unix = False  # type: ignore[attr-defined]
    try:
        if isinstance(control, Gateway):
            return control.authenticate(mocked, Access.USE)
        return control.authenticate(mocked, Access.USE, over_unix=over_unix)
    except Refused as refused:
        return refused


def status_of(heard: Caller | Refused) -> int:
    return heard.status if isinstance(heard, Refused) else 200


async def test_wrong_keys_are_braked_and_valid_ones_never(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """429 with when to come back, to that address alone, and the log has a line a minute."""
    now_s = [100.0]
    control = braked_control(now_s)
    heard = [ask_from(control, "192.0.2.7", CANARY + str(n)) for n in range(FREE + 5)]
    assert [status_of(each) for each in heard] == [401] * FREE + [429] * 5
    last = heard[-1]
    assert isinstance(last, Refused)
    assert last.headers == {"Retry-After": "6"}
    assert last.close  # no connection waits for the brake
    assert CANARY not in last.message
    assert status_of(ask_from(control, "192.0.2.7", KEY)) == 200
    assert status_of(ask_from(control, "192.0.2.7", CANARY, OTHER_KEY)) == 200
    assert status_of(ask_from(control, "192.0.2.8", CANARY)) == 401
    assert status_of(ask_from(control, "192.0.2.7")) == 401  # none is not a wrong one
    now_s[0] += EVERY_S
    assert status_of(ask_from(control, "192.0.2.7", CANARY)) == 401
    control.tell_wrong_keys()
    now_s[0] = 160.0
    control.tell_wrong_keys()
    control.tell_wrong_keys()
    assert caplog.messages == [
        "wrong keys: 1, from 192.0.2.7 (1)",
        f"wrong keys: {FREE + 6}, from 192.0.2.7 ({FREE + 5}), 192.0.2.8 (1)",
    ]
    assert CANARY not in caplog.text


async def test_wrong_keys_of_this_computer_are_told_and_not_braked(
    guarded: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Over loopback and over a Unix socket."""
    for _ in range(FREE * 2):
        assert (await guarded.ask(get("/", f"x-api-key: {CANARY}"))).status == 401
    control = braked_control([0.0])
    for _ in range(FREE * 2):
        assert status_of(ask_from(control, "", CANARY, over_unix=True)) == 401
    assert caplog.messages == [
        "wrong keys: 1, from 127.0.0.1 (1)",
        "wrong keys: 1, from this computer (1)",
    ]


async def test_a_reload_does_not_release_the_brake(rigs) -> None:
    """What a worker knows of wrong keys outlives each state of its settings."""
    rig = await rigs(Upstream(name="box", url="http://127.0.0.1:9"), tokens=list(TOKENS))
    for _ in range(FREE):
        assert status_of(ask_from(rig.gateway, "192.0.2.7", CANARY)) == 401
    rig.reload(rig.settings)
    assert status_of(ask_from(rig.gateway, "192.0.2.7", CANARY)) == 429


async def test_a_key_in_the_query_is_no_key(guarded: Rig) -> None:
    """Addresses end up in logs, so a key there is not looked at."""
    assert (await guarded.ask(get(f"/?key={KEY}&api_key={KEY}"))).status == 401


async def test_without_tokens_any_key_is_nobody(free: Rig) -> None:
    """Client libraries send a dummy key where none is needed."""
    answer = await free.ask(get("/", "Authorization: Bearer sk-none", "x-api-key: other"))
    assert caller_of(answer) == Caller(owner="", name="")


async def test_an_open_route_needs_no_key() -> None:
    """Health can be asked by a service manager, with tokens in use or not."""
    async with serve_guarded(new_control(TOKENS), Access.OPEN) as rig:
        assert caller_of(await rig.ask(get("/", "x-api-key: wrong"))) == Caller(owner="", name="")


async def test_a_door_does_not_hold_keys() -> None:
    """What is remembered of a key is its digest."""
    control = new_control(TOKENS)
    headers = CIMultiDict({"Host": "localhost", "x-api-key": KEY})
    control.authenticate(make_mocked_request("GET", "/", headers), Access.USE)
    assert digest(KEY) in held(control, str)
    assert KEY not in held(control, str)
    assert KEY.encode() not in held(control, bytes)
    assert KEY not in repr(control)
