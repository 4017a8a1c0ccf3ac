"""Names that a request calls us by, and pages that it comes from: judged by rules written anew."""

from __future__ import annotations

import ipaddress
import itertools
import re

import msgspec
import pytest

from hostile.conftest import Tried
from hostile.exchange import try_all, try_one, willing
from hostile.mutate import mutants
from hostile.requests import CHAT, UPGRADE, request
from tidegate.core.http.host import HostRules, is_home_name, parse_authority
from tidegate.core.http.origin import OriginRules

LIMITS = {"header_s": 0.5, "body_s": 0.5, "first_output_s": 3.0, "total_s": 20.0}
MUTANTS = 20_000
OURS = [
    "127.0.0.1",
    "127.0.0.1:80",
    "localhost:8433",
    "[::1]",
    "LOCALHOST",
    "box.local",
    "10.0.0.7",
]
AT_HOME = ["nas", "host.docker.internal", "nas.lan:8433", "nas.home.arpa", "a.localhost", "local"]
STRANGE = [
    *("evil.example", "evil.example:8433", "127.0.0.1.evil.example", "localhost.evil.example"),
    *("evil.example#127.0.0.1", "127.0.0.1@evil.example", "evil.example\\@127.0.0.1", "0.0.0.0"),
    *("0", "127.1", "0x7f.0.0.1", "2130706433", "017700000001", "127.0.0.1 evil.example", "[::]"),
    *("[::ffff:8.8.8.8]", "8.8.8.8", "169.254.169.254.nip.io", "localhost:", "localhost:0", ""),
    *(
        "localhost:99999",
        "[::1",
        "::1",
        "[fe80::1%25eth0]",
        "a..b",
        "-a.local",
        "\uff4cocalhost",
    ),
    *(
        "evil.example/127.0.0.1",
        "evil.example?localhost",
        "xn--lcalhost-54a.example",
        "localhost\t",
    ),
    *("192.168.1.1.xip.io", "box.local.evil.example", "1.1.1.1", "localhost,evil.example", "*"),
]
ORIGINS = [
    *(
        "http://evil.example",
        "https://evil.example:8433",
        "null",
        "",
        "http://127.0.0.1.evil.example",
    ),
    *("http://127.0.0.1:81", "http://localhost@evil.example", "file://", "chrome-extension://abc"),
    *("http://evil.example http://127.0.0.1", "http://127.0.0.1/", "javascript:x", "http://[::1"),
]
APPS = ["http://192.168.1.7:3000", "https://chat.example.com", "https://*.wild.example"]
# Written from the documents, without the code that is tried: who may call us what.
_NETWORKS = [
    *map(ipaddress.ip_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
    *map(
        ipaddress.ip_network,
        ("169.254.0.0/16", "100.64.0.0/10", "::1/128", "fe80::/10", "fc00::/7"),
    ),
]


def may_call_us(text: str) -> str:
    """Who may call us so while there is no token: "anyone", "programs" or no one at all."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", text.lower())
    if not text.isascii() or not found or (found[2] and not 0 < int(found[2]) < 65536):
        return ""
    name = found[1]
    try:
        address = ipaddress.ip_address(name.strip("[]") if name[0] == "[" else name.rstrip("."))
    except ValueError:
        if name[0] == "[" or re.fullmatch(
            r"[0-9]+|0x[0-9a-f]*", name.removesuffix(".").split(".")[-1]
        ):
            return ""
    else:
        if (address.version == 6) != (name[0] == "["):
            return ""
        address = getattr(address, "ipv4_mapped", None) or address
        near = (address in each for each in _NETWORKS if each.version == address.version)
        return "anyone" if any(near) else ""
    labels = name.removesuffix(".").split(".")
    good = all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in labels)
    if not good or len(name.removesuffix(".")) > 253:
        return ""
    if labels in (["localhost"], ["me"], ["me", "lan"]) or (
        len(labels) > 1 and labels[-1] == "local"
    ):
        return "anyone"
    at_home = len(labels) == 1 or labels[-1] in ("internal", "lan", "localhost")
    return "programs" if at_home or (labels[-2:] == ["home", "arpa"] and labels[2:]) else ""


def test_no_name_of_a_stranger_is_taken_for_ours(tried: Tried) -> None:
    """The rule in the code and the rule in the documents agree on every name, changed or not."""
    rules = HostRules([], "me.lan")
    corpus = [name.encode() for name in (*OURS, *AT_HOME, *STRANGE, "me", "me.lan") if name]
    words = [
        b".evil.example",
        b"127.0.0.1",
        b"localhost",
        b".local",
        b".lan",
        b".home.arpa",
        b".internal",
        b":80",
        b"[::1]",
        b"%31",
        b"@",
    ]
    wrong = []
    for changed in mutants(corpus, words, "hosts", MUTANTS):
        text = changed[:400].decode("latin-1")
        try:
            host = parse_authority(text)
            allowed = "anyone" if rules.allow(host) else "programs" if is_home_name(host) else ""
        except ValueError:
            allowed = ""
        if allowed != may_call_us(text):
            wrong.append((text, allowed))
    assert not wrong, wrong[:10]
    tried(MUTANTS)


async def test_a_homes_own_name_is_no_way_in_for_a_page(rigs, raw_upstream, tried: Tried) -> None:
    """Without a token a program may call us so; what shows a browser in any way may not."""
    upstream = await raw_upstream(willing)
    rig = await rigs(upstream, **LIMITS)
    head, _, body = CHAT.partition(b"\r\n\r\n")
    marks = [
        b"Origin: http://::",
        b"Origin: null",
        b"Origin:",
        b"Sec-Fetch-Site: same-origin",
        b"Sec-Fetch-Site:",
        b"User-Agent: Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 Version/26.0 Safari/605.1.15",
        b"user-agent:x mozilla/5.0",
    ]
    asked = 0
    for host in AT_HOME:
        named = head.replace(b"Host: 127.0.0.1", b"Host: " + host.encode())
        one = await try_one(rig.port, named + b"\r\n\r\n" + body)
        assert [reply.status for reply in one.replies] == [200], one
        asked = len(upstream.peers)
        inputs = [
            b"\r\n".join((named, mark.replace(b"::", host.encode()), b"", body)) for mark in marks
        ]
        for one in await try_all(rig, inputs):
            assert [reply.status for reply in one.replies] == [403], one
        assert len(upstream.peers) == asked
    tried(len(AT_HOME) * (1 + len(marks)))


async def test_a_strange_host_reaches_no_route(rigs, raw_upstream, tried: Tried) -> None:
    """Whatever is asked for under a name that is not ours is a 400 or 403 and asks no upstream."""
    upstream = await raw_upstream(willing)
    rig = await rigs(upstream, **LIMITS)
    starts = (b"GET /healthz", b"GET /v1/models", b"GET /metrics", b"POST /v1/chat/completions")
    inputs = [
        start + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\nContent-Length: 0\r\n\r\n"
        for start, host in itertools.product(starts, STRANGE)
    ]
    done = await try_all(rig, inputs)
    assert [one.sent for one in done if not one.replies] == []
    passed = [one.sent for one in done if one.replies[0].status not in {400, 403}]
    trimmed = [sent for sent in passed if b"localhost\t" not in sent]  # blanks around it are none
    assert trimmed == []
    assert not upstream.peers
    tried(len(inputs))


@pytest.mark.parametrize(
    "start",
    [
        b"POST /v1/chat/completions",
        b"POST /v1/runs/run_0/cancel",
        b"DELETE /v1/responses/resp_0",
        b"GET /v1/responses",
    ],
)
async def test_a_page_of_another_site_changes_nothing(
    rigs, raw_upstream, tried: Tried, start: bytes
) -> None:
    """With the Origin or the Sec-Fetch-Site of another page each changing request is a 403."""
    upstream = await raw_upstream(willing)
    rig = await rigs(upstream, **LIMITS)
    upgrade = UPGRADE if start.startswith(b"GET") else ()
    marks = [(b"Origin: " + origin.encode(),) for origin in ORIGINS]
    marks += [(b"Sec-Fetch-Site: " + site,) for site in (b"cross-site", b"same-site", b"", b"None")]
    marks += [(b"Origin: http://127.0.0.1", *mark) for mark in marks]
    inputs = [request(start, *upgrade, *mark, body=b"{}") for mark in marks]
    done = await try_all(rig, inputs)
    let_in = [one.sent for one in done if [reply.status for reply in one.replies] != [403]]
    assert let_in == []
    assert not upstream.peers
    tried(len(inputs))


async def test_our_own_page_and_no_page_may(rigs, raw_upstream, tried: Tried) -> None:
    """The same requests pass from the same origin, by a person's hand, or without a browser."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    marks = [
        (),
        (b"Origin: http://127.0.0.1",),
        (b"Sec-Fetch-Site: same-origin",),
        (b"Sec-Fetch-Site: none",),
        (b"Origin: http://127.0.0.1", b"Sec-Fetch-Site: same-origin"),
    ]
    head, _, body = CHAT.partition(b"\r\n\r\n")
    for mark in marks:
        one = await try_one(rig.port, b"\r\n".join((head, *mark)) + b"\r\n\r\n" + body)
        assert [reply.status for reply in one.replies] == [200], one
    tried(len(marks))


def may_read_us(text: str) -> bool:
    """Whether a browser would write this for a page of APPS."""
    if text in APPS[:2]:
        return True
    found = re.fullmatch(r"https://([a-z0-9_.-]+)\.wild\.example", text)
    labels = found[1].split(".") if found and len(found[1]) <= 240 else [""]
    return all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in labels)


def test_no_page_of_a_stranger_is_taken_for_an_allowed_one(tried: Tried) -> None:
    """The rule in the code and the rule in the documents agree on every origin, changed or not."""
    rules = OriginRules(APPS)
    corpus = [each.encode() for each in (*APPS[:2], "https://a.wild.example", *ORIGINS) if each]
    words = [b"https://", b".wild.example", b":443", b"evil.example", b"@", b"/", b"#", b",", b" "]
    wrong = []
    for changed in mutants(corpus, words, "origins", MUTANTS):
        text = changed[:400].decode("latin-1")
        if rules.allow(text) != may_read_us(text):
            wrong.append((text, rules.allow(text)))
    assert not wrong, wrong[:10]
    tried(MUTANTS)


async def test_pages_that_are_not_allowed_stay_out_where_some_are(
    rigs, raw_upstream, tried: Tried
) -> None:
    """Whatever Origin asks whatever way: none is told that it may read, and none asks a model."""
    upstream = await raw_upstream(willing)
    rig = await rigs(upstream, **LIMITS)
    rig.reload(msgspec.structs.replace(rig.settings, allowed_origins=APPS))
    marks = [(f"Origin: {origin}".encode(),) for origin in ORIGINS]
    marks += [(f"Origin: {APPS[0]}".encode(), *mark) for mark in marks]
    asks = (
        (b"POST /v1/chat/completions",),
        (b"OPTIONS /v1/chat/completions", b"Access-Control-Request-Method: POST"),
        (b"GET /v1/responses", *UPGRADE),
    )
    inputs = [
        request(start, *mark, *more, body=b"{}" if start.startswith(b"POST") else b"")
        for (start, *more), mark in itertools.product(asks, marks)
    ]
    for one in await try_all(rig, inputs):
        assert b"access-control-" not in one.replies[0].head.lower(), one.sent
        assert one.replies[0].status in {400, 403, 405}, one.sent
    assert not upstream.peers
    tried(len(inputs))


async def test_no_answer_lets_a_page_read_it(rigs, raw_upstream, tried: Tried) -> None:
    """Whatever Origin asks whatever way, no header allows another site's page to see the answer."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    asks = (
        (b"GET /v1/models",),
        (b"OPTIONS /v1/chat/completions", b"Access-Control-Request-Method: POST"),
        (b"OPTIONS /", b"Access-Control-Request-Private-Network: true"),
        (b"GET /healthz",),
    )
    inputs = [
        request(start, b"Origin: " + origin.encode(), *more)
        for (start, *more), origin in itertools.product(asks, ORIGINS)
    ]
    for one in await try_all(rig, inputs):
        assert b"access-control-" not in one.replies[0].head.lower(), one.sent
    tried(len(inputs))
