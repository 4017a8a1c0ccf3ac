"""The page for eyes, keyboards and screen readers: axe-core is content, and nothing jumps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from fakes.browser import Browser, Tab
from fakes.gateway import Gateway, gateways
from fakes.page import LONG, VIEWS, ask, begin, check_calm, show
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream

pytestmark = pytest.mark.timeout(240)
SIZES = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 800}}
# Where the keyboard is, and whether that can be seen.
NAME = "(it.tagName + ' ' + (it.id || it.hash || it.ariaLabel || it.textContent))"
FOCUSED = f"""(() => {{
  const it = document.activeElement;
  const style = getComputedStyle(it);
  return {{ name: it === document.body ? "" : {NAME},
           outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 }};
}})()"""
STOPS = "a, button, input, select, textarea, summary, [tabindex='0']"
REACHABLE = f"""[...document.querySelectorAll("{STOPS}")]
  .filter((it) => !it.disabled && it.checkVisibility()).map((it) => {NAME})"""
SHIFTS = """(() => {
  window.shifts = [];
  new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map((each) =>
    each.value + ": " + each.sources.map((one) => one.node?.parentElement?.outerHTML))))
    .observe({ type: "layout-shift" });
})()"""
WIDTHS = """[...document.querySelectorAll('main .view:not([hidden]) :is(th, td, dd)')]
  .map((cell) => Math.round(cell.getBoundingClientRect().width * 10))"""


@pytest.fixture(scope="module")
def running(upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """With answers under way, some that are over, and one upstream that is away."""
    upstream.listed = ["ok", "a-model-with-a-rather-long-name:70b-instruct-q4_k_m", LONG]
    alias = '[[model]]\nname = "fast"\ntargets = ["box/ok"]\n'
    with gateways() as start:
        started = start(toml(("box", upstream.url), ("off", "http://127.0.0.1:1"), rest=alias))
        for model in ("ok", "status:503"):
            begin(started, model)
        runs = [begin(started, LONG) for _ in range(2)]
        yield started
        for run in runs:
            assert ask(started, "POST", f"/v1/runs/{run}/cancel")[0] == 200


@pytest.fixture(scope="module")
def tab(browser: Browser, running: Gateway) -> Tab:
    """One page that shows everything."""
    found = show(browser, running)
    found.wait_text("#repairs", "upstream off", 60)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing(tab: Tab, running: Gateway, size: str, colours: str) -> None:
    """In no section, and none is wider than the window."""
    tab.call("setViewportSize", SIZES[size])
    tab.call("emulateMedia", {"colorScheme": colours})
    for view in VIEWS:
        tab.go(view)
        time.sleep(1.1)
        passed, wrong = tab.find_faults()
        assert (view, wrong) == (view, [])
        assert passed > 20
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
    check_calm(tab, running)


def test_axe_finds_nothing_at_the_door(browser: Browser) -> None:
    """Where a token is asked for."""
    with gateways() as start:
        started = start()
        assert started.command("token", "new", "laptop").returncode == 0
        door = browser.open(f"{started.base_url}/")
        door.wait("!document.getElementById('door').hidden")
        assert door.find_faults()[1] == []
        assert door.evaluate("document.activeElement.id") == "token"


@pytest.mark.parametrize("view", VIEWS)
def test_the_keyboard_reaches_everything_and_is_seen(tab: Tab, view: str) -> None:
    """From the top with Tab alone; wherever it is, there is an outline."""
    tab.call("setViewportSize", SIZES["wide"])
    tab.go(view)
    time.sleep(1.1)
    tab.call("focus", ".skip")
    for key in ("Tab", "Shift+Tab"):
        tab.call("keyboard.press", key)
    wanted = set(tab.evaluate(REACHABLE))
    reached = set()
    for _ in range(len(wanted) + 5):
        found = tab.evaluate(FOCUSED)
        if found["name"]:
            assert found["outline"], found["name"]
            reached.add(found["name"])
        tab.call("keyboard.press", "Tab")
    assert wanted - reached == set()


def test_the_skip_link_leads_to_what_is_shown(tab: Tab) -> None:
    """It shows no other section."""
    tab.go("models")
    tab.call("focus", ".skip")
    tab.call("keyboard.press", "Enter")
    assert tab.evaluate("document.activeElement.id") == "content"
    assert tab.is_shown("#models")


@pytest.mark.parametrize(("view", "size"), list(itertools.product(("overview", "answers"), SIZES)))
def test_nothing_jumps_while_figures_change(tab: Tab, view: str, size: str) -> None:
    """Every cell keeps its width, and the browser counts no shift."""
    tab.call("setViewportSize", SIZES[size])
    tab.go(view)
    time.sleep(1.5)
    before, text = tab.evaluate(WIDTHS), tab.text("main")
    tab.evaluate(SHIFTS)
    time.sleep(4.5)
    assert tab.evaluate(WIDTHS) == before
    assert tab.evaluate("window.shifts") == []
    assert view == "overview" or tab.text("main") != text  # ages have gone on
