"""A browser that a test leads by the hand: Chromium, by a driver in Node (`e2e/page.mjs`)."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fakes.machine import wait_until
from fakes.scenario import NODE_MODULES

DRIVER = Path(__file__).parents[1] / "e2e" / "page.mjs"
NEEDS = ("playwright-core", "axe-core")
LIMIT_S = 60.0


def missing_for_browser() -> str | None:
    """What has to be installed before a browser can be led; None when nothing has."""
    absent = [name for name in ("node", "chromium") if shutil.which(name) is None]
    absent += [f"{name} (npm)" for name in NEEDS if not (NODE_MODULES / name).is_dir()]
    return f"needs {', '.join(absent)} (.ci/run installs it)" if absent else None


@dataclass
class Tab:
    """One open page."""

    browser: Browser
    number: int
    browsing: str

    def call(self, name: str, *args: Any) -> Any:
        """Call a method of Playwright's Page."""
        return self.browser.do(does="call", tab=self.number, name=name, args=args)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.call("evaluate", expression)

    def text(self, selector: str) -> str:
        """What an element says, shown or not."""
        return str(self.call("textContent", selector))

    def is_shown(self, selector: str) -> bool:
        """Whether it can be seen."""
        return bool(self.call("isVisible", selector))

    def wait(self, expression: str, limit_s: float = 20.0) -> None:
        """Waits until an expression is true in the page."""
        wait_until(lambda: self.evaluate(expression), limit_s, expression, every_s=0.05)

    def wait_text(self, selector: str, part: str, limit_s: float = 20.0) -> None:
        """Waits until an element says it."""
        said: list[str] = [""]

        def says() -> bool:
            said[0] = self.text(selector)
            return part in said[0]

        try:
            wait_until(says, limit_s, f"{selector} says {part!r}", every_s=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {said[0]!r}") from None

    def go(self, view: str) -> None:
        """Shows a section, by its link."""
        self.call("click", f'nav a[href="#{view}"]')
        self.wait(f"!document.getElementById('{view}').hidden")

    def seen(self) -> dict[str, Any]:
        """Its requests, its console's complaints, and its dialogs, since the last `forget`."""
        found: dict[str, Any] = self.browser.do(does="seen", tab=self.number)
        return found

    def forget(self) -> None:
        """Begins anew with all that `seen` tells."""
        self.browser.do(does="forget", tab=self.number)

    def find_faults(self) -> tuple[int, list[str]]:
        """How many rules of axe-core hold, and which do not."""
        found = self.browser.do(does="axe", tab=self.number)
        return int(found["passed"]), list(found["wrong"])

    def frames(self) -> list[str]:
        """What is shown in it and in its frames."""
        return list(self.browser.do(does="frames", tab=self.number))

    def close(self) -> None:
        """Closes it."""
        self.browser.do(does="close", tab=self.number)


@dataclass
class Browser:
    """The driver's process, with a browser under it."""

    process: subprocess.Popen[bytes]
    complaints: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def do(self, **asked: Any) -> Any:
        """Have the driver do something; fails with its error, or after LIMIT_S."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(LIMIT_S), f"no answer in {LIMIT_S:g} s to {asked}"
        line = self.process.stdout.readline()
        assert line, f"the driver has ended: {self.complaints.read_text()[-3000:]}"
        answer = json.loads(line)
        assert "error" not in answer, f"{asked}: {answer['error']}"
        return answer.get("value")

    def open(self, url: str, browsing: str = "", **options: Any) -> Tab:
        """Opens a page. Tabs of one `browsing` share what a browser does, others nothing.

        `options` are Playwright's of a context, for the first tab of it.
        """
        number = next(self._numbers)
        tab = Tab(self, number, browsing or f"alone-{number}")
        self.do(does="open", tab=number, url=url, browsing=tab.browsing, options=options)
        return tab

    def cookies(self, tab: Tab) -> list[Any]:
        """The cookies that it has."""
        return list(self.do(does="cookies", browsing=tab.browsing))


@contextmanager
def browsers() -> Iterator[Browser]:
    """One browser, ended at the end. Ask `missing_for_browser` first."""
    with tempfile.TemporaryDirectory(prefix="tg-browser-") as scratch:
        complaints = Path(scratch, "stderr")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TIDEGATE_", "NODE_")) and not name.lower().endswith("_proxy")
        }
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                ["node", str(DRIVER), str(NODE_MODULES.parent), shutil.which("chromium") or ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=kept | {"HOME": scratch},
            )
        assert process.stdin
        assert process.stdout
        try:
            yield Browser(process, complaints)
        finally:
            process.stdin.close()  # it closes its browser and ends
            try:
                process.wait(15)
            finally:
                process.kill()
                process.wait(10)
                process.stdout.close()
