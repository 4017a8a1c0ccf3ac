"""Take the README's pictures of the page: `make screenshot`, docs/page-light.png and -dark.png.

A whole tidegate with two hours behind it, scripted upstreams and answers under way, in Chromium.
`--all FOLDER` takes every section as well, wide and narrow, to be looked at.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from fakes.browser import Tab, browsers, missing_for_browser
from fakes.gateway import Gateway, gateways
from fakes.page import VIEWS, WITH_PAST, begin, new_token, show
from fakes.scenario import ROOT, toml
from fakes.upstream import ScriptedUpstream

DOCS = ROOT / "docs"
MOST_BYTES = 150 * 1024
WIDE = {"width": 1280, "height": 860}
NARROW = {"width": 390, "height": 844}
COLOURS = ("light", "dark")
MODELS = ("qwen3:32b", "gemma3:12b", "llama3.3:70b", "nomic-embed-text")
ANSWERS = (  # whose, of what model, and whether it still runs
    ("laptop", "qwen3:32b", False),
    ("phone", "gemma3:12b", False),
    ("open-webui", "gemma3:12b", False),
    ("laptop", "llama3.3:70b", False),
    ("open-webui", "qwen3:32b", True),
    ("laptop", "gemma3:12b", True),
)
REST = """
[memory]
budget = "512MiB"
[[model]]
name = "fast"
targets = ["box/gemma3:12b", "mac/gemma3:12b"]
[[model]]
name = "best"
targets = ["mac/llama3.3:70b", "box/qwen3:32b"]
"""


def answer(running: Gateway, upstream: ScriptedUpstream) -> str:
    """Have answers given, and some under way; a key of the owner's."""
    keys = {name: new_token(running, name) for name in sorted({each[0] for each in ANSWERS})}
    for owner, model, runs in ANSWERS:
        upstream.play(model, "numbered:4000:60" if runs else "ok")
        begin(running, f"box/{model}", keys[owner], stream_options={"include_usage": True})
        if not runs:
            time.sleep(1.5)
    return new_token(running, "me", "--scope", "owner")


def take(tab: Tab, path: Path, *, whole: bool) -> None:
    """Take one picture."""
    tab.call("screenshot", {"path": str(path), "fullPage": whole})
    print(f"{path}: {path.stat().st_size // 1024} KiB")


def look(tab: Tab, folder: Path) -> None:
    """Take every section, in every size and colour."""
    for name, size in (("wide", WIDE), ("narrow", NARROW)):
        tab.call("setViewportSize", size)
        for colours in COLOURS:
            tab.call("emulateMedia", {"colorScheme": colours})
            for view in VIEWS:
                tab.go(view)
                time.sleep(1.5)
                take(tab, folder / f"{view}-{name}-{colours}.png", whole=True)


def main() -> int:
    """Take them; 1 where one is larger than a README should carry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    folder = parser.parse_args().all
    if absent := missing_for_browser():
        print(absent, file=sys.stderr)
        return 1
    pictures = []
    with ExitStack() as opened:
        upstreams = [ScriptedUpstream(listed=list(MODELS)).start() for _ in range(2)]
        for each in upstreams:
            opened.callback(each.stop)
        browser = opened.enter_context(browsers())
        start = opened.enter_context(gateways())
        config = toml(("box", upstreams[0].url), ("mac", upstreams[1].url), rest=REST)
        path = os.fspath(ROOT / "tests")
        running = start(config, program=WITH_PAST, env={"PYTHONPATH": path})
        tab = show(browser, running, answer(running, upstreams[0]), viewport=WIDE)
        tab.wait_text("#chart-text", "120 minutes")
        tab.wait_text("#today", "Answers4")
        for colours in COLOURS:
            tab.call("emulateMedia", {"colorScheme": colours})
            time.sleep(1.5)
            pictures.append(DOCS / f"page-{colours}.png")
            take(tab, pictures[-1], whole=False)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            look(tab, folder)
        tab.go("answers")
        while tab.evaluate("document.querySelectorAll('#running button').length"):
            tab.call("click", "#running button:not([disabled])")
            time.sleep(1.5)
    return int(any(each.stat().st_size > MOST_BYTES for each in pictures))


if __name__ == "__main__":
    sys.exit(main())
