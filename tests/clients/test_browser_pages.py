"""Pages in a real browser: those of an allowed origin get in, no other, and no rebound name."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clients.stage import environment
from fakes.gateway import Gateway, gateways
from fakes.scenario import NODE_MODULES, toml
from fakes.upstream import ScriptedUpstream

DRIVER = Path(__file__).with_name("drivers") / "pages.mjs"
LIMIT_S = 90.0
REBOUND = ("evil.example", "evil.lan", "nas")
CHAT = json.dumps({"model": "ok", "stream": True, "messages": []})
ABSENT = [
    name
    for name, is_there in (
        ("node", shutil.which("node")),
        ("chromium", shutil.which("chromium")),
        *(
            (each, (NODE_MODULES / each).is_dir())
            for each in ("openai", "@anthropic-ai/sdk", "playwright-core")
        ),
    )
    if not is_there
]
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(150),
    pytest.mark.skipif(bool(ABSENT), reason=f"needs {', '.join(ABSENT)} (.ci/run installs it)"),
]


# Where a page finds what official clients import; nothing of theirs is needed for webhooks.
IMPORTS = {
    "@opentelemetry/api": "/@opentelemetry/api/dist/index.mjs",
    "standardwebhooks": "/webhooks.mjs",
}
PAGE = f"""<!doctype html><title>app</title>
<script type="importmap">{json.dumps({"imports": IMPORTS})}</script>"""


class _Site(BaseHTTPRequestHandler):
    """An empty page, and official clients for it."""

    def do_GET(self) -> None:
        file = NODE_MODULES / self.path[1:]
        if self.path == "/":
            kind, body = "text/html", PAGE.encode()
        elif self.path == "/webhooks.mjs":
            kind, body = "text/javascript", b"export class Webhook {}"
        elif ".." not in self.path and file.is_file():
            kind, body = "text/javascript", file.read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


app = pytest.fixture(_site, name="app")
other = pytest.fixture(_site, name="other")


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    started = ScriptedUpstream().start()
    yield started
    started.stop()


@pytest.fixture
def running(app: str, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with gateways() as start:
        yield start(f'allowed_origins = ["{app}"]\n{toml(("box", upstream.url))}')


def browse(*asks: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of each ask."""
    with tempfile.TemporaryDirectory(prefix="tg-pages-") as scratch:
        told = {
            "asks": asks,
            "chromium": shutil.which("chromium"),
            "node": str(NODE_MODULES.parent),
            "rebound": REBOUND,
            "scratch": scratch,
        }
        done = subprocess.run(
            ["node", str(DRIVER), json.dumps(told)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=environment(scratch),
        )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    return outcomes


def test_an_allowed_page_streams_and_another_reads_nothing(
    running: Gateway, app: str, other: str, upstream: ScriptedUpstream
) -> None:
    """With official clients, whose headers make a browser ask first; with a token in force."""
    token = running.command("token", "new", "page").stdout.strip()
    url = running.base_url
    ask = {"does": "withOpenAi", "url": url, "token": token, "model": "ok"}
    look = {"does": "withFetch", "url": url, "path": "/v1/models", "method": "GET"}
    plain = {**look, "path": "/v1/chat/completions", "method": "POST", "body": CHAT}
    keyed = {"headers": {"x-api-key": token, "anthropic-version": "2023-06-01"}}
    mine, theirs, wrong, refused, listed, *others = browse(
        {"at": app, **ask},
        {"at": app, **ask, "does": "withAnthropic"},
        {"at": app, **ask, "token": "tg-wrong"},
        {"at": app, **look},
        {"at": app, **look, **keyed},
        {"at": other, **ask},
        {"at": other, **ask, "does": "withAnthropic"},
        {"at": other, **look, **keyed},
        {"at": other, **look},
        {"at": other, **plain},
    )
    assert mine["text"] == "one two three"
    assert mine["run"].startswith("run_")
    assert theirs["text"] == "one two three"
    assert theirs["request"].startswith("run_")
    assert wrong["status"] == 401  # which the page can read, with its reason
    assert "token is not valid" in wrong["error"]
    assert (refused["status"], listed["status"]) == (401, 200)
    assert all("error" in each and each.get("status") is None for each in others), others
    assert len(upstream.seen("ok")) == 2


def test_an_allowed_page_opens_a_websocket_with_its_token_as_a_subprotocol(
    running: Gateway, app: str, other: str
) -> None:
    """In both spellings; another page's is refused though it has the token; no log has it."""
    token = running.command("token", "new", "page").stdout.strip()
    ask = {
        "does": "withSocket",
        "url": running.base_url,
        "path": "/v1/responses",
        "message": json.dumps({"type": "response.create", "model": "ok", "input": "x"}),
    }
    ours = {"protocols": ["tidegate", f"tidegate-token.{token}"]}
    theirs = {"protocols": ["realtime", f"openai-insecure-api-key.{token}"]}
    first, second, bare, strange = browse(
        {"at": app, **ask, **ours},
        {"at": app, **ask, **theirs},
        {"at": app, **ask, "protocols": ["tidegate"]},
        {"at": other, **ask, **ours},
    )
    assert (first["protocol"], second["protocol"]) == ("tidegate", "realtime")
    for each in (first, second):
        assert json.loads(each["messages"][-1])["type"] == "response.completed"
    for each in (bare, strange):
        assert (each["protocol"], each["messages"], each["code"]) == (None, [], 1006)
    assert token not in running.log.read_text()


@pytest.mark.parametrize("name", REBOUND)
def test_a_rebound_name_leads_a_page_nowhere(
    running: Gateway, upstream: ScriptedUpstream, name: str
) -> None:
    """A page whose name leads here by now, in the easiest case for it: there is no token."""
    url = f"http://{name}:{running.port}"
    at = f"{url}/came-from-elsewhere"
    ask = {"at": at, "does": "withFetch", "url": url}
    seen, listed, asked, *socket = browse(
        {"at": f"{url}/", "does": "look"},
        {**ask, "path": "/v1/models", "method": "GET"},
        {**ask, "path": "/v1/chat/completions", "method": "POST", "body": CHAT},
        {**ask, "does": "withSocket", "path": "/v1/responses", "protocols": [], "message": "{}"},
    )
    assert [each["status"] for each in (seen, listed, asked)] == [403, 403, 403]
    assert "not a name of this server" in listed["text"]
    assert socket == [{"protocol": None, "messages": [], "code": 1006}]
    assert not upstream.seen("ok")
