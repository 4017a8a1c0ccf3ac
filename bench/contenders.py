"""The contenders, each in front of the same stub: how each is had, named and started.

Each starts fresh in a directory of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

from installs import LITELLM, PORTKEY, debian, litellm, portkey, version_of
from peers import SLOW, SLOWEST, Peer, free_port, run_gateway
from tools import Stub, pinned

HERE = Path(__file__).parent
RELAYS = {"aiohttp": "ceiling_aiohttp.py", "ceiling": "ceiling_protocol.py"}
TIDEGATE = Path(sys.executable).parent / "tidegate"
LITELLM_KEY = "sk-bench"

Start = Callable[[Stub, int, Path], AbstractContextManager[Peer]]


@contextmanager
def start_direct(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start nothing in between: the harness measures itself."""
    yield Peer(name="direct", port=stub.port)


@contextmanager
def start_nginx(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start nginx: one worker, no buffering of answers, connections to the stub kept."""
    port = free_port()
    config = folder / "nginx.conf"
    # Root would otherwise hand the worker to a user who may not exist and cannot write here.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(f"""{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream stub {{
        server 127.0.0.1:{stub.port};
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /healthz {{ return 200; }}
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 3600s;
        }}
    }}
}}
""")
    command = pinned(core, *debian("nginx"), "-p", folder, "-c", config, "-e", folder / "error.log")
    with run_gateway(command, port, folder / "nginx.log") as (pid, ready_s):
        yield Peer(name="nginx", port=port, pid=pid, ready_s=ready_s)


@contextmanager
def start_tidegate(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start tidegate as people run it: defaults, tokens, answers recorded, the guard acting."""
    from tidegate.config import tokens  # noqa: PLC0415  (the other peers run without tidegate)

    port = free_port()
    config, state_dir, runtime_dir = folder / "config.toml", folder / "state", folder / "run"
    config.write_text(f"""listen = "127.0.0.1:{port}"
[[upstream]]
name = "stub"
url = "http://127.0.0.1:{stub.port}"
""")
    for directory in (state_dir, runtime_dir):
        directory.mkdir(mode=0o700)
    token = tokens.new(state_dir / "tokens", "bench")
    places = ["--config", config, "--state-dir", state_dir, "--runtime-dir", runtime_dir]
    command = pinned(core, TIDEGATE, "run", *places)
    with run_gateway(command, port, folder / "tidegate.log") as (pid, ready_s):
        yield Peer(
            name="tidegate",
            port=port,
            pid=pid,
            ready_s=ready_s,
            token=token,
            sweep=[str(part) for part in (TIDEGATE, "sweep", "--finished", *places)],
        )


@contextmanager
def start_relay(name: str, stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start one of the small relays beside this file."""
    port = free_port()
    command = pinned(core, sys.executable, HERE / RELAYS[name], port, stub.port)
    with run_gateway(command, port, folder / "relay.log", "/v1/models") as (pid, ready_s):
        yield Peer(name=name, port=port, pid=pid, ready_s=ready_s)


@contextmanager
def start_haproxy(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start haproxy: one process with one thread, connections to the stub shared and kept."""
    port, config = free_port(), folder / "haproxy.cfg"
    config.write_text(f"""global
    maxconn 8192
    nbthread 1
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    http-request return status 200 if {{ path /healthz }}
    default_backend stub
backend stub
    http-reuse always
    server stub 127.0.0.1:{stub.port}
""")
    command = pinned(core, *debian("haproxy"), "-db", "-f", config)
    with run_gateway(command, port, folder / "haproxy.log") as (pid, ready_s):
        yield Peer(name="haproxy", port=port, pid=pid, ready_s=ready_s)


@contextmanager
def start_caddy(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start Caddy: every byte of an answer flushed at once, connections to the stub kept."""
    port, config = free_port(), folder / "Caddyfile"
    config.write_text(f"""{{
    admin off
    auto_https off
}}
http://:{port} {{
    bind 127.0.0.1
    respond /healthz 200
    reverse_proxy 127.0.0.1:{stub.port} {{
        flush_interval -1
        transport http {{
            keepalive_idle_conns_per_host 64
        }}
    }}
}}
""")
    command = ["env", f"HOME={folder}", *debian("caddy"), "run", "--config", str(config)]
    with run_gateway(pinned(core, *command), port, folder / "caddy.log") as (pid, ready_s):
        yield Peer(name="caddy", port=port, pid=pid, ready_s=ready_s)


@contextmanager
def start_portkey(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start Portkey's gateway; each request tells it where to go."""
    port = free_port()
    command = pinned(core, *portkey(), f"--port={port}", "--headless")
    with run_gateway(command, port, folder / "portkey.log", "/") as (pid, ready_s):
        yield Peer(
            name="portkey",
            port=port,
            pid=pid,
            ready_s=ready_s,
            token="none",
            headers="x-portkey-provider: openai\r\n"
            f"x-portkey-custom-host: http://127.0.0.1:{stub.port}/v1\r\n",
            size=SLOW,
        )


@contextmanager
def start_litellm(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start LiteLLM's proxy: one worker, one key, every model at the stub."""
    port, config = free_port(), folder / "litellm.yaml"
    config.write_text(f"""model_list:
  - model_name: "*"
    litellm_params:
      model: "openai/*"
      api_base: "http://127.0.0.1:{stub.port}/v1"
      api_key: none
general_settings:
  master_key: {LITELLM_KEY}
litellm_settings:
  telemetry: false
""")
    options = ["--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", 1]
    command = pinned(core, *litellm(), *options)
    log = folder / "litellm.log"
    with run_gateway(command, port, log, "/health/liveliness") as (pid, ready_s):
        yield Peer(
            name="litellm",
            port=port,
            pid=pid,
            ready_s=ready_s,
            token=LITELLM_KEY,
            is_rewritten=True,
            size=SLOWEST,
        )


STARTS: dict[str, Start] = {
    "direct": start_direct,
    "nginx": start_nginx,
    "haproxy": start_haproxy,
    "caddy": start_caddy,
    "portkey": start_portkey,
    "litellm": start_litellm,
    "aiohttp": partial(start_relay, "aiohttp"),
    "ceiling": partial(start_relay, "ceiling"),
    "tidegate": start_tidegate,
}
# What runs without being asked for: nginx, which nearly every system has, and no downloads.
DEFAULT = ["direct", "nginx", "ceiling", "tidegate"]


def version(name: str) -> str:
    """Have a contender ready to start, and tell its version. Raises CannotInstallError."""
    if name == "nginx":
        return version_of(debian("nginx"), "-v")
    if name == "haproxy":
        return version_of(debian("haproxy"), "-v")
    if name == "caddy":
        return version_of(debian("caddy"), "version")
    if name == "portkey":
        portkey()
        return PORTKEY
    if name == "litellm":
        litellm()
        return LITELLM
    if name == "tidegate":
        return version_of([str(TIDEGATE)], "--version")
    if name == "aiohttp":
        return metadata.version("aiohttp")
    return f"(uvloop {metadata.version('uvloop')})" if name == "ceiling" else ""
