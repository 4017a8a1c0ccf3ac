"""Keys, tokens and people's words come out nowhere, whatever becomes of a real gateway.

Each canary is planted where its owner puts it, or where it may land by mistake. The upstream
repeats the key that it was sent wherever it can. Then everything that others may get to see is
searched: files, logs, answers, what the verbs print, command lines, environments, open files.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fakes.canaries import forms, found
from fakes.client import Stream, get
from fakes.gateway import Gateway, StartGateway
from fakes.machine import family, free_port, wait_until
from fakes.upstream import chunk
from gateway.gateway_rig import HEAD, LAST, Peer, RawUpstream, chunked, plain
from tidegate import config
from tidegate.managers.job import Job, Scope
from tidegate.managers.launchd import plist
from tidegate.managers.systemd import unit

LIMIT_S = 20.0  # for answers that come at once
ENV_KEY = 'sk-CANARYenv-4f1c/9b+7e"22\\d0a8'  # what a JSON or a shell would escape is in it
FILE_KEY = "sk-CANARYfile-0d5e8a31c7f94b26"
CREDENTIAL_KEY = "sk-CANARYcred-71b3e0f2a95d4c68"
NEXT_KEY = "sk-CANARYnext-6c2f9d04b81e4a57"  # after the file was written anew
UNUSED = "sk-CANARYunused-93ad5be1f0c24768"  # in the environment, and no affair of ours
GATE = 'CANARYgate 6d1f "of 2" 90ab/7c3e'  # a secret header, which may have spaces
PLAIN_WORD_KEY = "CANARY.key-of-letters.alone"  # might be the name of an error
KEYS = {
    "the key in the environment": ENV_KEY,
    "the key in a file": FILE_KEY,
    "the key in a credential": CREDENTIAL_KEY,
    "the key of plain letters": PLAIN_WORD_KEY,
    "the next key": NEXT_KEY,
    "a secret header": GATE,
    "a variable that is not ours": UNUSED,
}

# Parts of the addresses of receivers and of the heartbeat, which people paste from elsewhere.
HOOKS = {
    "a hook in the config": "CANARYhook-in-config-5b1c8e",
    "a hook in a file": "CANARYhook-in-file-93d0fa",
    "a hook in the environment": "CANARYhook-in-env-7e42b9",
    "a heartbeat": "CANARYhook-of-heartbeat-c60d",
}

WRONG_TOKEN = "tg-CANARYwrong-b7f0e2d94c1a4863"
PASTED = "sk-CANARYpasted-2e9c7b51d8f04a36"  # by a client, where it does not belong
PROMPT = "CANARY prompt: what is it that hurts me so?"
ANSWER = "CANARY answer, nothing but the spring!"
WORDS = {
    "a wrong token": WRONG_TOKEN,
    "a key in the wrong place": PASTED,
    "a prompt": PROMPT,
    "an answer": ANSWER,
}
VARIABLES = {
    "CLOUD_KEY": ENV_KEY,
    "WORD_KEY": PLAIN_WORD_KEY,
    "GATE_VALUE": GATE,
    "OTHERS_SECRET": UNUSED,
}
UPSTREAMS = {
    "env": 'api_key_env = "CLOUD_KEY"',
    "word": 'api_key_env = "WORD_KEY"',
    "file": 'api_key_file = "file-key"',
    "cred": 'api_key_file = "cred-key"',
    "gate": 'headers = { X-Gate = { env = "GATE_VALUE" }, X-File = { file = "file-key" } }',
    "anthropic": 'api_key_file = "file-key"\napi_key_header = "x-api-key"',
}
BAD_CONFIG = f'[[upstream]]\nname = "x"\nurl = "http://u:{PASTED}@h"\napi_key_env = "{PASTED}"\n'

# --- an upstream that repeats the key that it was sent --------------------------------------------


def key_in(request: bytes) -> str:
    """What the gateway sent as the key."""
    for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name.lower() in {b"authorization", b"x-api-key", b"x-gate"}:
            return value.removeprefix(b"Bearer ").decode()
    return ""


async def repeat(peer: Peer, heard: set[str]) -> None:
    """Answers as the model's name says, and repeats the key, the prompt and an answer."""
    while True:
        request = await peer.request()
        target = request.split(b" ", 2)[1].decode()
        if "CANARYhook" in target:
            heard.add(target.lstrip("/"))
            await peer.send(plain(f"what is {target}?".encode(), b"503 Not " + target.encode()))
            continue
        key = key_in(request)
        heard.add(key)
        said = f"Incorrect API key provided: {key}. {PROMPT} {ANSWER}"
        told = {"message": said, "code": key, "type": key, "param": key}
        error = {"type": "error", "error": told} if b"/messages" in request else {"error": told}
        body = json.dumps(error).encode()
        fields = tuple(
            f"{name}: {key}".encode()
            for name in ("X-Request-Id", "Retry-After", "X-Ratelimit-Limit", "X-Key", "Server")
        )
        if b'"messages"' not in request:
            await peer.send(plain(b'{"data":[{"id":"fail-401"}]}'))
        elif b"fail-401" in request:
            await peer.send(plain(body, f"401 {key}".encode(), *fields))
        elif b"fail-503" in request:
            await peer.send(plain(body, f"503 {key}".encode(), *fields))
        elif b"fail-200" in request:
            await peer.send(plain(body, b"200 OK", *fields))
        elif b"fail-first" in request:
            await peer.send(HEAD + chunked(b"data: " + body + b"\n\n") + LAST)
        elif b"fail-later" in request:
            events = chunk(content=ANSWER), b"data: " + body + b"\n\n"
            await peer.send(HEAD + chunked(*events) + LAST)
        elif b"fail-garbage" in request:
            await peer.send(f"{said}\r\n\r\n{said}".encode())
            return
        elif b"fail-redirect" in request:
            await peer.send(plain(b"", b"307 Away", f"Location: http://h/?key={key}".encode()))
        elif b"fail-chunk" in request:
            await peer.send(HEAD, chunked(chunk(content=ANSWER)), f"{key}\r\n".encode())
        else:
            await peer.send(HEAD + chunked(chunk(role="assistant"), chunk(content=ANSWER)))
            await peer.hang()


FAILURES = (
    "fail-401",
    "fail-503",
    "fail-200",
    "fail-first",
    "fail-later",
    "fail-garbage",
    "fail-redirect",
    "fail-chunk",
)


@dataclass
class Repeater:
    """That upstream, and which keys it has heard."""

    server: RawUpstream
    heard: set[str]


@pytest.fixture
async def repeater() -> AsyncIterator[Repeater]:
    """That upstream, running."""
    heard: set[str] = set()
    server = await RawUpstream(lambda peer: repeat(peer, heard)).start()
    yield Repeater(server, heard)
    await server.stop()


# --- what clients do ------------------------------------------------------------------------------


def body_of(model: str, *, stream: bool = True) -> dict[str, object]:
    return {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 5,
        "user": PROMPT,
        "metadata": {"note": PROMPT},
        "api_key": PASTED,
        "api_base": f"http://{PASTED}/",
    }


async def fail_in_every_way(running: Gateway, token: str) -> dict[str, str]:
    """The upstream's failures, by every key; what the clients were told."""
    told: dict[str, str] = {}
    headers = {"Authorization": f"Bearer {token}", "X-Custom": PASTED, "Cookie": f"key={PASTED}"}
    for name in UPSTREAMS:
        for failure in FAILURES:
            for path, stream in (
                ("/v1/chat/completions", True),
                ("/v1/chat/completions", False),
                ("/v1/messages", True),
            ):
                body = body_of(f"{name}/{failure}", stream=stream)
                answer = await get(running.base_url, path, body, headers=headers)
                if failure != "fail-later":  # what stands in a stream already is passed on
                    key = f"what {name}/{failure} told at {path}, stream={stream}"
                    told[key] = f"{answer.status} {answer.headers} {answer.body.decode()}"
    return told


def open_socket(offered: str, version: int = 13) -> str:
    """A WebSocket's handshake, as a page writes it: its token is a subprotocol."""
    return (
        "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: {version}\r\n"
        f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: {offered}\r\n\r\n"
    )


async def go_wrong(running: Gateway) -> None:
    """Clients that put a key where it does not belong."""
    url = running.base_url
    for headers in (
        {"Authorization": f"Bearer {WRONG_TOKEN}"},
        {"x-api-key": WRONG_TOKEN},
        {"Authorization": f"Bearer {WRONG_TOKEN}", "x-api-key": PASTED},
        {"Authorization": f"Basic {PASTED}"},
        {"Authorization": PASTED},
        {"Host": PASTED},
        {"Origin": f"http://{PASTED}"},
        {"Expect": PASTED},
        {"Content-Type": PASTED},
        {"Transfer-Encoding": PASTED},
        {"Idempotency-Key": PASTED, "Last-Event-ID": PASTED, "User-Agent": PASTED},
    ):
        with suppress(asyncio.IncompleteReadError):
            await get(url, "/v1/chat/completions", body_of("env/answer"), headers=headers)
    for path in (
        f"/v1/models?key={PASTED}&api_key={PASTED}",
        f"/{PASTED}",
        f"/v1/{PASTED}/models",
        f"/v1/runs/{PASTED}",
        f"/v1/runs/{PASTED}/events?after={PASTED}",
        f"/v1/responses/{PASTED}",
        f"/v1/models/{PASTED}",
        f"/metrics?token={PASTED}",
        f"/readyz?token={PASTED}",
        f"//{PASTED}@evil/",
    ):
        await get(url, path)
        await get(url, path, {}, method="DELETE")
    await send_raw(running, f"GET http://u:{PASTED}@x/ HTTP/1.1\r\nHost: x\r\n\r\n")
    for offered in (f"tidegate-token.{WRONG_TOKEN}", f"openai-insecure-api-key.{PASTED}", PASTED):
        await send_raw(running, open_socket(f"tidegate, {offered}"))
    await send_raw(running, f"{PASTED} / HTTP/1.1\r\nHost: x\r\n\r\n")
    await send_raw(running, f"GET / {PASTED}\r\n\r\n")
    await send_raw(running, f"GET / HTTP/1.1\r\n{PASTED}\r\n\r\n")
    await send_raw(running, f"{PASTED}\x00\x01\r\n\r\n")
    text = f"{{'{PASTED}' {PROMPT}"
    await send_raw(
        running,
        f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}",
    )


async def go_wrong_inside(running: Gateway, token: str) -> None:
    """The same, by a client with a token."""
    for version in (12, 13):  # the first is refused for it, the other one let in
        await send_raw(running, open_socket(f"tidegate, tidegate-token.{token}", version))
    headers = {"Authorization": f"Bearer {token}"}
    for model in (PASTED, f"env/{PASTED}", f"{PASTED}/x", PROMPT, f"env/{PROMPT}"):
        stream = await Stream.open(
            running.base_url, "/v1/chat/completions", body_of(model), headers=headers
        )
        await asyncio.wait_for(stream.head(), LIMIT_S)
        await stream.vanish()
    await get(running.base_url, "/v1/responses", {"model": [PASTED]}, headers=headers)
    await get(running.base_url, "/v1/embeddings", {"input": PROMPT}, headers=headers)


async def send_raw(running: Gateway, text: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(text.encode())
    with suppress(ConnectionError, TimeoutError):
        await asyncio.wait_for(reader.read(4096), 5)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def read_on(running: Gateway, token: str, name: str) -> Stream:
    """A stream that goes on, once its answer has begun."""
    stream = await Stream.open(
        running.base_url,
        "/v1/chat/completions",
        body_of(f"{name}/answer"),
        headers={"Authorization": f"Bearer {token}"},
    )
    async with asyncio.timeout(LIMIT_S):
        events = await stream.read_events(2)
    assert len(events) == 2, (stream.status, bytes(stream.body))
    return stream


# --- everything that others may get to see --------------------------------------------------------

# `verb, words`: what people are told of a running tidegate.
VERBS = (
    "status",
    "status --json",
    "runs",
    "runs --json",
    "models",
    "models --json",
    "logs --lines all",
    "logs --lines all --json",
    "check",
    "check --json",
    "token list",
    "token list --json",
    "version --json",
    "doctor",
    "doctor --json",
    "service status --user --json",
    "service install --user --dry-run",
    "reload --json",
    "notify test",
    "notify test --json",
)
ROUTES = ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/runs")


def files_of(running: Gateway) -> dict[str, str]:
    """All that is written down: state, runtime directory, logs. The config is the owner's own."""
    texts = {}
    for path in running.config.parent.rglob("*"):
        texts[f"the name {path}"] = str(path)
        if path.is_file() and path != running.config:
            with suppress(FileNotFoundError):
                texts[str(path)] = path.read_bytes().decode("utf-8", "replace")
    return texts


def processes_of(running: Gateway) -> dict[str, str]:
    """What the kernel shows of its processes to their owner, less what the owner gave to them."""
    texts = {}
    for process in family(running.pid):
        with suppress(psutil.Error):
            words = process.cmdline()
            texts[f"the command line of {process.pid}"] = "\n".join(words)
            # A worker is told the keys, and has none of their variables.
            given = VARIABLES if process.pid == running.pid else {"OTHERS_SECRET": UNUSED}
            environ = {
                name: value for name, value in process.environ().items() if given.get(name) != value
            }
            if process.pid == running.pid:
                environ.pop("HOOK_URL", None)
            texts[f"the environment of {process.pid}"] = json.dumps(environ)
            if any("notify.send" in word for word in words):
                continue  # it ends in a moment, and has on its standard input where to send
        texts.update(open_files_of(process.pid))
    return texts


def open_files_of(pid: int) -> dict[str, str]:
    """Files without a name that it holds open: they outlive execve and a fork."""
    texts = {}
    folder = Path(f"/proc/{pid}/fd")
    for link in folder.iterdir() if folder.exists() else ():
        with suppress(OSError):
            target = str(link.readlink())
            if "memfd:" in target or "(deleted)" in target:
                texts[f"{target} of {pid}"] = link.read_bytes().decode("utf-8", "replace")
    return texts


def printed(running: Gateway, *verbs: str) -> dict[str, str]:
    """What these verbs print, in an environment that has the keys."""
    texts = {}
    for verb in verbs:
        done = command(running, *verb.split())
        texts[f"`{verb}`"] = f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
    return texts


def command(running: Gateway, *words: str) -> subprocess.CompletedProcess[str]:
    """`tidegate WORDS`, as in a terminal where the keys were exported."""
    places = [
        "--config", str(running.config),
        "--state-dir", str(running.state_dir),
        "--runtime-dir", str(running.runtime_dir),
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *words, *places],
        env=os.environ | VARIABLES,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


async def served(running: Gateway, token: str) -> dict[str, str]:
    """What is told over HTTP, with a token and without one."""
    texts = {}
    for path in ROUTES:
        for who, headers in (("all", {}), ("a client", {"Authorization": f"Bearer {token}"})):
            answer = await get(running.base_url, path, headers=headers)
            texts[f"{path} for {who}"] = f"{answer.headers} {answer.body.decode()}"
    return texts


async def everything(running: Gateway, token: str, *verbs: str) -> dict[str, str]:
    """All of it."""
    texts = await served(running, token)
    texts |= await asyncio.to_thread(printed, running, *verbs)
    texts |= await asyncio.to_thread(processes_of, running)
    return texts | await asyncio.to_thread(files_of, running)


@dataclass
class CommandLines:
    """Every command line that was seen while something went on: what `ps` would have shown."""

    seen: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def of(self, running: Gateway) -> Iterator[None]:
        """Look again and again until the block is left."""
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                for process in family(running.pid):
                    with suppress(psutil.Error):
                        words = "\n".join(process.cmdline())
                        self.seen[f"a command line, {hash(words)}"] = words
                over.wait(0.05)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def without_names(texts: Mapping[str, str]) -> dict[str, str]:
    """Without the lists of runs: they show their owner the models' names as clients wrote them."""
    return {
        name: text for name, text in texts.items() if not name.startswith(("`runs", "/v1/runs"))
    }


# --- a gateway with canaries in it ----------------------------------------------------------------


def plant(tmp_path: Path, url: str) -> tuple[str, dict[str, str]]:
    """A config and an environment with all the keys; the file's key is `tmp_path/file-key`."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "tidegate_cred-key").write_text(CREDENTIAL_KEY + "\n")
    key_file = tmp_path / "file-key"
    key_file.write_text(FILE_KEY + "\n")
    key_file.chmod(0o600)
    tables = [
        f'[[upstream]]\nname = "{name}"\nurl = "{url}"\n{key}\n'.replace(
            '"file-key"', f'"{key_file}"'
        )
        for name, key in UPSTREAMS.items()
    ]
    in_config, in_file, in_env, beat = (f"{url}/{hook}" for hook in HOOKS.values())
    hook_file = tmp_path / "hook-url"
    hook_file.write_text(in_file + "\n")
    hook_file.chmod(0o600)
    tables += [
        f'[[notify]]\nname = "config"\nurl = "{in_config}"\n',
        f'[[notify]]\nname = "file"\nurl_file = "{hook_file}"\n',
        '[[notify]]\nname = "env"\nurl_env = "HOOK_URL"\n',
        f'[heartbeat]\nurl = "{beat}"\nevery_s = 5\n',
    ]
    environ = VARIABLES | {"HOOK_URL": in_env, "CREDENTIALS_DIRECTORY": str(credentials)}
    return "".join(tables), environ


def make_token(running: Gateway) -> str:
    made = command(running, "token", "new", "laptop")
    token = made.stdout.strip()
    assert len(token) > 20, made.stderr
    return token


async def test_nothing_shown_of_a_running_gateway_holds_a_canary(
    gateway: StartGateway, repeater: Repeater, tmp_path: Path
) -> None:
    """Keys, tokens and words are in no file, answer of ours, verb, metric or command line."""
    toml, env = plant(tmp_path, repeater.server.url)
    running = await asyncio.to_thread(gateway, toml, env=env)
    token = await asyncio.to_thread(make_token, running)
    await go_wrong(running)
    told = await fail_in_every_way(running, token)
    await go_wrong_inside(running, token)
    stream = await read_on(running, token, "env")
    texts = await everything(
        running, token, "status --json", "runs --json", "doctor", "notify test", "bundle --json"
    )
    await stream.vanish()
    assert repeater.heard >= {*KEYS.values(), *HOOKS.values()} - {UNUSED, NEXT_KEY}
    assert "it answered 503" in texts["`notify test`"]
    assert len([name for name in texts if "bundles/" in name]) > 1
    leaks = found(KEYS | HOOKS | {"the token": token}, texts | told) + found(
        WORDS, without_names(texts)
    )
    assert not leaks, "\n".join(leaks)


@pytest.mark.long
async def test_nothing_that_befalls_it_brings_a_canary_out(
    gateway: StartGateway, repeater: Repeater, tmp_path: Path
) -> None:
    """Reloads, good and bad, a recycle, a killed and a hung worker, two upgrades, a sweep, a stop.

    Whatever is handed on meanwhile lies in no file that is left, and in no command line.
    """
    toml, env = plant(tmp_path, repeater.server.url)
    running = await asyncio.to_thread(
        gateway, toml, env=env, flags=("--log-file", str(log(tmp_path)))
    )
    token = await asyncio.to_thread(make_token, running)
    good = running.config.read_text()
    lines, texts = CommandLines(), dict[str, str]()
    with lines.of(running):
        stream = await read_on(running, token, "cred")

        running.config.write_text(good + BAD_CONFIG)
        texts |= await asyncio.to_thread(
            printed, running, "reload", "check --json", "doctor --json"
        )
        texts |= await served(running, token)
        refused = await asyncio.to_thread(command, running, "upgrade")
        assert refused.returncode != 0
        texts["a refused upgrade"] = refused.stderr

        running.config.write_text(good)
        (tmp_path / "file-key").write_text(NEXT_KEY)
        texts |= await asyncio.to_thread(printed, running, "reload --json")
        await fail_in_every_way(running, token)
        await go_wrong(running)
        await go_wrong_inside(running, token)
        texts |= await asyncio.to_thread(printed, running, "recycle --no-wait")
        both = await read_on(running, token, "file")
        texts |= await everything(running, token, *VERBS, "bundle --json")
        await both.vanish()
        await stream.vanish()
        await asyncio.to_thread(lose_workers, running)
        stream = await read_on(running, token, "env")

        for ask_for_it in (ask_for_upgrade, signal_upgrade):
            await asyncio.to_thread(ask_for_it, running)
            texts |= await asyncio.to_thread(processes_of, running)
        both = await read_on(running, token, "word")
        await fail_in_every_way(running, token)
        texts |= await everything(running, token, *VERBS, "sweep --json", "bundle --json")
        await both.vanish()
        await stream.vanish()
    await asyncio.to_thread(running.stop)
    texts |= files_of(running) | lines.seen
    texts["its log"] = "".join(path.read_text() for path in sorted(log(tmp_path).parent.iterdir()))
    assert repeater.heard >= {*KEYS.values(), *HOOKS.values()} - {UNUSED}
    assert "reload refused" in texts["its log"]
    assert "most recent call first" in texts["its log"]  # the stacks of the hung worker
    assert "goes on where" in texts["its log"]
    leaks = found(KEYS | HOOKS | {"the token": token}, texts) + found(WORDS, without_names(texts))
    assert not leaks, "\n".join(leaks)


def log(tmp_path: Path) -> Path:
    """Where it logs."""
    folder = tmp_path / "logs"
    folder.mkdir(exist_ok=True)
    return folder / "tidegate.log"


def lose_workers(running: Gateway) -> None:
    """One is killed, the next one hangs until the watchdog has had enough of it."""
    for number in (signal.SIGKILL, signal.SIGSTOP):
        pid = running.worker_pid()
        os.kill(pid, number)
        wait_until(lambda pid=pid: not is_serving(running, pid), 60, "the worker is gone")
        running.wait_ready()


def is_serving(running: Gateway, pid: int) -> bool:
    worker = running.status()["worker"]
    return worker is not None and worker["pid"] == pid


def ask_for_upgrade(running: Gateway) -> None:
    """`tidegate upgrade`, by the owner at the machine."""
    done = command(running, "upgrade", "--no-wait")
    assert done.returncode == 0, done.stderr


def signal_upgrade(running: Gateway) -> None:
    """The same as a package manager asks for it."""
    generation = running.status()["generation"]
    os.kill(running.pid, signal.SIGUSR2)
    wait_until(lambda: running.status()["generation"] != generation, 60, "the upgrade is done")
    running.wait_ready()


# --- parked ---------------------------------------------------------------------------------------


@pytest.mark.long
async def test_parked_it_says_why_and_nothing_more(
    gateway: StartGateway, repeater: Repeater, tmp_path: Path
) -> None:
    """The reason is on every route, without a token; what was pasted into the file is not."""
    port = free_port()
    toml, env = plant(tmp_path, repeater.server.url)
    running = await asyncio.to_thread(
        gateway,
        toml + BAD_CONFIG,
        flags=("--park",),
        env=env | {"TIDEGATE_LISTEN": f"127.0.0.1:{port}"},
        until_ready=False,
    )
    running.base_url = f"http://127.0.0.1:{port}"
    await asyncio.to_thread(wait_until, lambda: answers(running), 30, "the parked worker answers")
    texts = await everything(running, WRONG_TOKEN, *VERBS, "bundle --json")
    assert "api_key_env" in texts["/readyz for all"]
    body = body_of(PASTED)
    refused = await get(running.base_url, "/v1/chat/completions", body)
    assert refused.status == 503
    texts["a refused chat"] = refused.body.decode()
    await go_wrong(running)
    texts |= files_of(running)
    leaks = found(KEYS | HOOKS | WORDS, texts)
    assert not leaks, "\n".join(leaks)


def answers(running: Gateway) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", running.port), 1):
        return True
    return False


# --- what it is installed as ----------------------------------------------------------------------


def test_no_unit_and_no_property_list_holds_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written from a job, which has paths and no environment; a verb adds nothing."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    toml, _ = plant(tmp_path, "http://127.0.0.1:9")
    path = tmp_path / "config.toml"
    path.write_text(toml)
    job = Job(
        scope=Scope.SYSTEM,
        program=("/usr/bin/tidegate",),
        config_file=path,
        state_dir=tmp_path / "state",
        runtime_dir=tmp_path / "run",
        log_file=tmp_path / "log",
        user="tidegate",
    )
    texts = {
        "a unit": unit.service_unit(job, 257),
        "a socket unit": unit.socket_unit(job, ["127.0.0.1:8433"], 257),
        "a property list": plist.plist(job, ["127.0.0.1:8433"]).decode(),
    }
    assert all("ExecStart" in text or "Socket" in text for text in texts.values())
    for words in (("--user",), ("--system",), ("--user", "--socket")):
        places = ["--config", str(path), "--state-dir", str(tmp_path / "state")]
        install = [sys.executable, "-m", "tidegate", "service", "install", "--dry-run"]
        done = subprocess.run(
            [*install, *words, *places],
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        texts[f"install {words}"] = done.stdout + done.stderr
    leaks = found(KEYS, texts)
    assert not leaks, "\n".join(leaks)


# --- a config with a key in the wrong place -------------------------------------------------------

BOX = '[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:9"\n'
MISTAKES = {
    "api_key": f'{BOX}api_key = "{PASTED}"',
    "api_key_env": f'{BOX}api_key_env = "{PASTED}"',
    "api_key_file": f'{BOX}api_key_file = "{PASTED}"',
    "api_key_header": f'{BOX}api_key_header = "{PASTED}"',
    "userinfo": BOX.replace("127", f"user:{PASTED}@127"),
    "userinfo alone": BOX.replace("127", f"{PASTED}@127"),
    "url": BOX.replace("http://127.0.0.1:9", PASTED),
    "url's query": BOX.replace(":9", f":9/v1?key={PASTED}"),
    "name": BOX.replace("box", f"{PASTED}!"),
    "same name twice": BOX.replace("box", PASTED) * 2,
    "listen": f'listen = "{PASTED}"',
    "listen, reachable": f'listen = "{PASTED}:1"',
    "allowed_hosts": f'allowed_hosts = ["!{PASTED}"]',
    "allowed_origins": f'allowed_origins = ["https://{PASTED}@x"]',
    "mode": f'[memory]\nmode = "{PASTED}"',
    "budget": f'[memory]\nbudget = "{PASTED}"',
    "a number": f'[limits]\nidle_s = "{PASTED}"',
    "tokens_file": f'[auth]\ntokens_file = "{PASTED}/"',
    "a truth": f'[auth]\nallow_without_token = "{PASTED}"',
    "target": f'{BOX}[[model]]\nname = "m"\ntargets = ["{PASTED}"]',
    "target's upstream": f'{BOX}[[model]]\nname = "m"\ntargets = ["{PASTED}/m"]',
    "target twice": f'{BOX}[[model]]\nname = "m"\ntargets = ["box/{PASTED}", "box/{PASTED}"]',
    "same model twice": f'{BOX}[[model]]\nname = "{PASTED}"\ntargets = ["box/m"]\n' * 2,
    "a name of a key": f'"{PASTED}" = 1',
    "a name in a table": f"limits.{PASTED} = 1",
    "a table": f'["{PASTED}"]\nx = 1',
    "a table twice": f"[{PASTED}]\n[{PASTED}]",
    "no text": f"{BOX}api_key_env = {PASTED}",
    "no TOML": f"OPENAI_API_KEY={PASTED}",
    "an escape": f'x = "{PASTED}\\q"',
}


@pytest.mark.parametrize("where", MISTAKES)
def test_what_is_said_of_a_bad_config_repeats_no_key(where: str, tmp_path: Path) -> None:
    """File and place of the mistake are named; a parked tidegate tells them without a token."""
    path = tmp_path / "config.toml"
    path.write_text(MISTAKES[where] + "\n")
    with pytest.raises(config.ConfigError) as refused:
        config.load(path, tmp_path, {})
    said = str(refused.value)
    assert str(path) in said
    assert not found({"the key": PASTED}, {"the error": said})


def test_canary_is_found_in_every_form() -> None:
    """A search that finds nothing would prove nothing."""
    for text in forms(ENV_KEY):
        assert found({"key": ENV_KEY}, {"a place": f"before {text} after"})
    for text in (
        ENV_KEY[:20],
        ENV_KEY[-20:],
        base64.b64encode(f"user:{ENV_KEY}".encode()).decode(),
    ):
        assert found({"key": ENV_KEY}, {"a place": text})
    assert not found({"key": ENV_KEY}, {"a place": "sk-CANARYen"})
