"""What tests of the page share: it is opened, looked at, and found to be calm."""

from __future__ import annotations

import http.client
import json
from email.message import Message
from pathlib import Path
from typing import Any

from fakes.browser import Browser, Tab
from fakes.gateway import Gateway

VIEWS = ("overview", "answers", "models", "usage", "playground", "connect")
LONG = "numbered:4000:25"
# tidegate with two hours of memory behind it.
WITH_PAST = (str(Path(__file__).with_name("with_past.py")),)


def ask(
    running: Gateway, method: str, path: str, body: Any = None, key: str = ""
) -> tuple[int, Message]:
    """Ask as a program does, and leave when the head of the answer is there; status and head."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    headers = {"x-on-disconnect": "continue", "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        with connection.getresponse() as answer:
            return answer.status, answer.headers
    finally:
        connection.close()


def begin(running: Gateway, model: str, key: str = "", **more: Any) -> str:
    """Begin an answer that goes on by itself; its run's id."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}], **more}
    return str(ask(running, "POST", "/v1/chat/completions", body, key)[1]["x-run-id"])


def new_token(running: Gateway, *words: str) -> str:
    made = running.command("token", "new", *words)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def show(browser: Browser, running: Gateway, key: str = "", **options: Any) -> Tab:
    """Open the page, with a token if it asks for one, and wait until it shows something."""
    tab = browser.open(f"{running.base_url}/", **options)
    if key:
        enter(tab, key)
    tab.wait_text("#sentence", "MiB")
    return tab


def enter(tab: Tab, key: str) -> None:
    tab.wait("!document.getElementById('door').hidden")
    tab.call("fill", "#token", key)
    tab.call("press", "#token", "Enter")


def check_calm(tab: Tab, running: Gateway, *expected: str) -> None:
    """It asked no other host, nothing was forbidden or thrown, and no dialog came up."""
    seen = tab.seen()
    own = f"{running.base_url}/"
    assert [each["url"] for each in seen["requests"] if not each["url"].startswith(own)] == []
    complaints = [text for text in seen["complaints"] if not any(part in text for part in expected)]
    assert (complaints, seen["dialogs"]) == ([], [])


def streams(*tabs: Tab) -> int:
    """How many streams of news are open in them."""
    asked = [each for tab in tabs for each in tab.seen()["requests"]]
    return sum(each["open"] and each["url"].endswith("/v1/live") for each in asked)


def hide(tab: Tab, hidden: bool) -> None:
    """As if another tab were shown in front of it, or no longer."""
    value = json.dumps({"configurable": True, "value": hidden})
    tab.evaluate(
        f"Object.defineProperty(document, 'hidden', {value})"
        " && document.dispatchEvent(new Event('visibilitychange')) && null"
    )


def rows(tab: Tab, table: str) -> list[list[str]]:
    found: list[list[str]] = tab.evaluate(
        f"[...document.querySelectorAll('#{table} tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return found
