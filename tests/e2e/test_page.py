"""The page at `/` in Chromium, shown by a whole tidegate whose upstream is scripted."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.request
from contextlib import ExitStack

import pytest

from fakes.browser import Browser
from fakes.gateway import Gateway, StartGateway
from fakes.machine import free_port, wait_until
from fakes.page import (
    LONG,
    WITH_PAST,
    begin,
    check_calm,
    hide,
    rows,
    show,
    streams,
)
from fakes.scenario import ROOT, toml
from fakes.upstream import ScriptedUpstream
from fakes.wire import WORDS

COUNTED = "numbered:120:15"
NUMBERS = "".join(f"{n} " for n in range(120))
ALIAS = f'[[model]]\nname = "fast"\ntargets = ["box/ok", "box/{COUNTED}"]\n'
pytestmark = pytest.mark.timeout(240)


def test_every_section_shows_what_there_is(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Figures, chart, answers, models, usage, addresses: as tidegate itself tells them."""
    scripted_upstream.listed = ["ok", COUNTED]
    running = gateway(toml(("box", scripted_upstream.url), rest=ALIAS))
    begin(running, "ok")
    run = begin(running, LONG)
    tab = show(browser, running)
    assert "Healthy" in tab.text("#sentence")
    tab.wait_text("#sentence", "1 answer running")
    figures = tab.text("#memory-figures")
    assert all(name in figures for name in ("Used", "Budget1,024 MiB", "Unexplained", "Level0"))
    tab.wait("document.querySelector('#chart canvas') !== null", 25)
    assert "MiB" in tab.text("#chart-text")
    tab.call("click", "#chart-details summary")
    tab.wait("document.querySelectorAll('#chart-table tbody tr').length > 0")
    tab.wait_text("#today", "Answers1")

    tab.go("answers")
    tab.wait_text("#running", LONG)
    [row] = rows(tab, "running")
    assert row[0] == run.removeprefix("run_")[:8]
    assert (row[2], row[3], row[4]) == (LONG, "box", "running")
    tab.wait_text("#running", "events/s")
    assert [each[3:6] for each in rows(tab, "over")] == [["ok", "box", "whole"]]
    tab.call("click", "#running button")
    tab.wait_text("#over", "cancelled")
    assert rows(tab, "running") == [["No answer is running."]]

    tab.go("models")
    assert [each[0] for each in rows(tab, "upstreams")] == ["box"]
    assert {each[0] for each in rows(tab, "model-table")} >= {"ok", COUNTED}
    assert rows(tab, "aliases") == [["fast", f"box/ok, then box/{COUNTED}"]]
    tab.go("usage")
    tab.wait_text("#usage-table", "none")
    tab.call("selectOption", "#usage-by", "model")
    tab.wait_text("#usage-table", "ok")
    tab.go("connect")
    tab.wait_text("#bases", f"http://127.0.0.1:{running.port}/v1")
    assert '"model": "fast"' in tab.text("#snippets")
    check_calm(tab, running)


def test_the_playground_misses_nothing(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A connection dropped before the first word, in the middle and again: the text is whole."""
    silent = "wait:2500"
    refused = "status:503"
    scripted_upstream.listed = [COUNTED, silent, refused, "error-middle", LONG]
    early = "hold_s = 0.2\nkeepalive_s = 0.2"  # a head goes out before there is any word
    running = gateway(toml(("box", scripted_upstream.url), limits=early))
    tab = show(browser, running)
    tab.go("playground")
    tab.wait("document.getElementById('play-model').options.length >= 5")

    def send(model: str) -> None:
        name = tab.evaluate(
            "[...document.getElementById('play-model').options].map((each) => each.value)"
            f".find((name) => name.endsWith({json.dumps(model)}))"
        )
        tab.call("selectOption", "#play-model", name)
        tab.call("click", "#play-send")

    send(COUNTED)
    for part in ("20 ", "60 "):
        tab.wait_text("#play-answer", part)
        tab.call("click", "#play-drop")
        tab.wait_text("#play-state", "goes on: resume it")
        held = tab.text("#play-answer")
        time.sleep(0.3)
        assert tab.text("#play-answer") == held
        tab.call("click", "#play-resume")
    tab.wait_text("#play-state", "Whole")
    assert tab.text("#play-answer").strip() == NUMBERS.strip()

    send(silent)
    tab.wait("!document.getElementById('play-drop').disabled")
    tab.call("click", "#play-drop")
    tab.call("click", "#play-resume")
    tab.wait_text("#play-state", "Whole")
    assert tab.text("#play-answer") == "".join(WORDS)

    send(refused)
    tab.wait_text("#play-state", "503")
    assert tab.evaluate("document.getElementById('play-resume').disabled") is True
    send("error-middle")
    tab.wait_text("#play-state", "It broke off: the fake is overloaded")
    send(LONG)
    tab.wait_text("#play-answer", "5 ")
    tab.call("click", "#play-cancel")
    tab.wait_text("#play-state", "It broke off")
    send(LONG)
    tab.wait_text("#play-answer", "5 ")
    tab.call("click", "#play-drop")
    tab.wait_text("#play-state", "resume it")
    tab.call("click", "#play-cancel")
    tab.wait_text("#play-state", "Cancelled after")
    assert tab.evaluate("document.getElementById('play-resume').disabled") is True
    check_calm(tab, running, "status of 50")


def test_an_open_page_lives_through_all_that_befalls_it(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A recycle, a kill, a reload, an upstream that is away: shown, and gone again."""
    running = gateway(toml(("box", scripted_upstream.url)))
    tab = show(browser, running)

    running.ask("recycle", 60.0)
    tab.wait_text("#version", "worker 2", 10)
    tab.wait_text("#marks", "recycle", 15)

    os.kill(running.worker_pid(), signal.SIGKILL)
    wait_until(lambda: running.status()["generation"] == 3 and running.is_ready(), 30, "it is back")
    tab.wait_text("#version", "worker 3", 3)
    tab.wait_text("#marks", "lost", 15)
    assert not tab.is_shown("#line")

    running.config.write_text(running.config.read_text() + "\n" + ALIAS)
    assert running.command("reload").returncode == 0
    tab.go("models")
    tab.wait_text("#aliases", "fast")

    scripted_upstream.refuse()
    tab.go("overview")
    tab.wait_text("#repairs", "upstream box", 60)
    assert tab.is_shown("#repairs-card")
    tab.wait_text("#sentence", "trouble")
    back = ScriptedUpstream(port=scripted_upstream.port).start()
    try:
        tab.wait("!document.getElementById('repairs').textContent.includes('upstream box')", 60)
        tab.wait_text("#sentence", "Healthy")
    finally:
        back.stop()
    check_calm(tab, running, "Failed to load resource", "ERR_")


def test_without_a_history_it_says_so(browser: Browser, gateway: StartGateway) -> None:
    """Under Today and under Usage; the rest of the page is as ever."""
    running = gateway("[history]\nmax_rows = 0\n")
    begin(running, "demo")
    tab = show(browser, running)
    tab.wait_text("#today", "history")
    tab.go("usage")
    tab.wait_text("#usage-note", "history")
    tab.go("answers")
    tab.wait_text("#over", "or there is no history")
    check_calm(tab, running, "Failed to load resource")


def test_parked_it_says_why_until_that_is_mended(browser: Browser, gateway: StartGateway) -> None:
    """The page is there before any config is, and shows the worker that comes then."""
    port = free_port()
    running = gateway(
        "nonsense = 1\n",
        flags=("--park",),
        env={"TIDEGATE_LISTEN": f"127.0.0.1:{port}"},
        until_ready=False,
    )
    running.base_url = f"http://127.0.0.1:{port}"
    wait_until(lambda: running.process.poll() is None and listens(port), 30, "it listens")
    tab = browser.open(f"{running.base_url}/")
    tab.wait_text("#sentence", "nonsense")
    running.config.write_text("allowed_hosts = []\n")
    tab.wait_text("#sentence", "Healthy", 40)
    assert not tab.is_shown("#line")
    check_calm(tab, running, "Failed to load resource")


def listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_a_browser_has_one_stream_and_a_hidden_tab_none(
    browser: Browser, gateway: StartGateway
) -> None:
    """The other tabs hear of it; when the one that has it goes, another takes over."""
    running = gateway()
    first = show(browser, running, browsing="shared")
    second = show(browser, running, browsing="shared")
    second.wait("document.querySelector('#chart canvas') !== null", 25)
    assert streams(first, second) == 1
    hide(first, True)
    wait_until(lambda: streams(first) == 0, 5, "the hidden tab has none")
    wait_until(lambda: streams(second) == 1, 5, "the other one has it")
    hide(second, True)
    wait_until(lambda: streams(first, second) == 0, 5, "there is none")
    for tab in (first, second):
        tab.forget()
    time.sleep(5)
    assert [each["url"] for tab in (first, second) for each in tab.seen()["requests"]] == []
    hide(first, False)
    wait_until(lambda: streams(first) == 1, 5, "a tab that is shown again has one")
    hide(second, False)
    time.sleep(2)
    assert streams(first, second) == 1
    first.close()
    wait_until(lambda: streams(second) == 1, 5, "the tab that is left has one")


def test_the_sixty_fifth_page_says_so(browser: Browser, gateway: StartGateway) -> None:
    """And shows what there is once another one is closed."""
    running = gateway()
    with ExitStack() as opened:
        for _ in range(64):
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
            opened.callback(connection.close)
            connection.request("GET", "/v1/live")
            assert opened.enter_context(connection.getresponse()).status == 200
        tab = browser.open(f"{running.base_url}/")
        tab.wait_text("#sentence", "64 pages are open already")
    tab.wait_text("#sentence", "Healthy", 20)
    check_calm(tab, running, "503")


def test_two_hours_of_memory_outlive_worker_and_program(
    browser: Browser, gateway: StartGateway
) -> None:
    """A kill and an upgrade: the same samples are there, and the marks of both beside the old."""
    running = gateway(program=WITH_PAST, env={"PYTHONPATH": os.fspath(ROOT / "tests")})
    tab = show(browser, running)
    tab.wait_text("#chart-text", "120 minutes")
    tab.wait_text("#marks", "swept 31 stuck answers")
    tab.call("click", "#chart-details summary")
    tab.wait("document.querySelectorAll('#chart-table tbody tr').length > 20")
    drawn = told_samples(running)
    assert len(drawn) >= 719

    os.kill(running.worker_pid(), signal.SIGKILL)
    tab.wait_text("#version", "worker 2", 20)
    running.process.send_signal(signal.SIGUSR2)
    tab.wait_text("#version", "worker 3", 30)
    for text in ("swept 31 stuck answers", "lost", "upgrade"):
        tab.wait_text("#marks", text)
    tab.wait_text("#chart-text", "120 minutes")
    again = told_samples(running)
    shared = [each for each in drawn if each[0] >= again[0][0]]
    assert len(shared) > 700
    assert again[: len(shared)] == shared
    check_calm(tab, running, "Failed to load resource", "ERR_")


def told_samples(running: Gateway) -> list[list[float]]:
    """The rows that a page is told first."""
    with urllib.request.urlopen(f"{running.base_url}/v1/live", timeout=20) as answer:
        assert answer.readline() == b"event: samples\n"
        found: list[list[float]] = json.loads(answer.readline().removeprefix(b"data: "))["rows"]
        return found
