"""The banner of `tidegate run` once it serves: its addresses, what it found, a line to try."""

from __future__ import annotations

import os
import select
import shlex
import sys
from pathlib import Path

import msgspec

from tidegate import __version__
from tidegate.config.places import Places
from tidegate.core.protocol.worker import Ready
from tidegate.core.text import visible

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  (read, not bound)


def banner_text(
    ready: Ready, addresses: list[str], places: Places, log_file: Path | None, *, has_tokens: bool
) -> str:
    """Write the banner; `addresses` are the bound ones, "127.0.0.1:8433" or "unix:/path"."""
    lines = [("Base URL", base_url(address)) for address in addresses]
    lines += [("Found", found) for found in ready.found or ["no model server on this computer"]]
    lines += [
        ("Config", _config(places)),
        ("Log", str(log_file) if log_file else "this terminal"),
    ]
    if has_tokens:
        lines.append(("Token", "needed; put yours into TIDEGATE_TOKEN for the line below"))
    return "\n".join(
        [
            f"tidegate {__version__} is ready.",
            "",
            *_columns(lines),
            "",
            "Try it:",
            "",
            f"  {curl_line(addresses[0], ready.model, has_tokens=has_tokens)}",
            "",
            "",
        ]
    )


def banner_line(ready: Ready, addresses: list[str], places: Places) -> str:
    """Write the same for the log of a service, in one line."""
    where = ", ".join(base_url(address) for address in addresses)
    found = ", ".join(ready.found) or "no model server on this computer"
    return f"tidegate {__version__} is ready: {where}; found {found}; config {_config(places)}"


def _config(places: Places) -> str:
    missing = "" if places.config_file.exists() else " (none there; defaults)"
    return f"{places.config_file}{missing}"


def base_url(address: str) -> str:
    """Return the base URL for a client on this computer."""
    if address.startswith("unix:"):
        return f"http://localhost/v1 over {address.removeprefix('unix:')}"
    host, _, port = address.rpartition(":")
    return f"http://{_EVERYWHERE.get(host, host)}:{port}/v1"


def curl_line(address: str, model: str, *, has_tokens: bool) -> str:
    """Write a line to paste into a shell; -N, so that curl prints each event as it comes."""
    body = msgspec.json.encode(
        {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    ).decode()
    url, socket = base_url(address), ""
    if address.startswith("unix:"):
        url = "http://localhost/v1"
        socket = f" --unix-socket {shlex.quote(address.removeprefix('unix:'))}"
    token = ' -H "Authorization: Bearer $TIDEGATE_TOKEN"' if has_tokens else ""
    return (
        f"curl -N{socket} {url}/chat/completions{token} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def print_calmly(text: str) -> None:
    """Print without ever waiting: the watchdog must not hang on a terminal that is stopped.

    On Linux a pipe that polls as writable takes 4 KiB without waiting, and no banner is so long.
    """
    if sys.stdout is None:
        return  # it was closed before we began
    try:
        fd = sys.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        if poller.poll(0):
            os.write(fd, visible(text, keep="\n").encode())
    except OSError:
        return  # the terminal is gone; the log says the same


def _columns(lines: list[tuple[str, str]]) -> list[str]:
    """Align two columns; a name that repeats is written once."""
    names = [name for name, _ in lines]
    return [
        f"  {'' if n and names[n - 1] == name else name:<10}{value}"
        for n, (name, value) in enumerate(lines)
    ]
