"""What the page lets in and gives away: nothing that its token does not."""

from __future__ import annotations

import json
import shlex
import time

import pytest

from fakes.browser import Browser
from fakes.gateway import StartGateway
from fakes.machine import free_port, wait_until
from fakes.page import LONG, VIEWS, begin, check_calm, enter, new_token, rows, show
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream
from tidegate.core.secret import name_shown

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "'\"><script>alert(2)</script>",
    "'; touch /tmp/tg-owned; '",
    "{{7*7}}\u202egnp.exe",
)
pytestmark = pytest.mark.timeout(120)


def test_a_token_stays_in_its_tab(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Asked for once, a wrong one is said to be; nothing else of the browser has it."""
    running = gateway(toml(("box", scripted_upstream.url)))
    key = new_token(running, "laptop")
    tab = browser.open(f"{running.base_url}/", browsing="token")
    tab.wait("!document.getElementById('door').hidden")
    assert not tab.is_shown("#overview")
    time.sleep(2)
    asked = [each for each in tab.seen()["requests"] if each["url"].endswith("/v1/live")]
    assert len(asked) == 1  # and it does not ask again and again
    enter(tab, "tg-wrong")
    tab.wait_text("#door-error", "token")
    enter(tab, key)
    tab.wait_text("#sentence", "MiB")
    assert not tab.is_shown("#door")
    tab.go("usage")
    tab.call("reload")
    tab.wait_text("#sentence", "MiB")
    assert not tab.is_shown("#door")

    assert tab.evaluate("sessionStorage.getItem('tidegate-token')") == key
    assert tab.evaluate("localStorage.length") == 0
    assert (browser.cookies(tab), tab.evaluate("document.cookie")) == ([], "")
    seen = tab.seen()["requests"]
    assert not any(key in each["url"] for each in seen)
    assert {each["headers"].get("authorization") for each in seen if "/v1/" in each["url"]} >= {
        f"Bearer {key}"
    }
    other = browser.open(f"{running.base_url}/", browsing="token")
    other.wait("!document.getElementById('door').hidden")

    assert running.command("token", "revoke", "laptop").returncode == 0
    new_token(running, "phone")  # else none is left, and none is asked for
    tab.wait("!document.getElementById('door').hidden")
    tab.wait_text("#door-error", "token")
    assert not tab.is_shown("#usage")
    for each in (tab, other):
        check_calm(each, running, "401")


def test_a_page_can_do_what_its_token_can(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """`use` sees and cancels its own, `read` sees all and cancels none, `owner` any."""
    running = gateway(toml(("box", scripted_upstream.url)))
    mine, theirs = new_token(running, "mine"), new_token(running, "theirs")
    wall = new_token(running, "wall", "--scope", "read")
    boss = new_token(running, "boss", "--scope", "owner")
    runs = {begin(running, LONG, key): key for key in (mine, theirs)}
    assert len(runs) == 2

    tab = show(browser, running, mine)
    tab.go("answers")
    tab.wait_text("#running", "mine")
    assert "theirs" not in tab.text("#running")
    assert tab.evaluate("document.querySelectorAll('#running button').length") == 1
    watching = show(browser, running, wall)
    watching.go("answers")
    watching.wait("document.querySelectorAll('#running tbody tr').length === 2")
    assert watching.evaluate("document.querySelectorAll('#running button').length") == 0
    watching.go("playground")
    watching.wait_text("#play-state", "look on")
    assert watching.evaluate("document.getElementById('play-send').disabled") is True
    owner = show(browser, running, boss)
    owner.go("answers")
    owner.wait("document.querySelectorAll('#running button').length === 2")

    tab.call("click", "#running button")
    tab.wait_text("#running", "No answer is running.")
    owner.wait("document.querySelectorAll('#running button').length === 1")
    owner.call("click", "#running button")
    watching.go("answers")
    for each in (owner, watching):
        each.wait_text("#running", "No answer is running.")
    watching.wait_text("#over", "theirs")
    for each in (tab, watching, owner):
        check_calm(each, running, "401")


def test_names_of_strangers_are_text(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """An upstream may call its models what it likes: it is shown, and nothing comes of it."""
    scripted_upstream.listed = list(HOSTILE)
    away = f"http://127.0.0.1:{free_port()}/%3Cimg%20src=x%20onerror=alert(3)%3E"
    running = gateway(toml(("box", scripted_upstream.url), ("away", away)))
    boss = new_token(running, "boss", "--scope", "owner")
    for name in HOSTILE:
        begin(running, name, boss)
    scripted_upstream.play(HOSTILE[0], "numbered:400:25")
    begin(running, HOSTILE[0], boss)  # the history leaves such a name out, and this one runs
    tab = show(browser, running, boss)
    tab.go("answers")
    tab.wait_text("#running", HOSTILE[0])
    for view in VIEWS:
        tab.go(view)
        time.sleep(1.1)
    assert [each[0] for each in rows(tab, "model-table")] == list(HOSTILE)
    assert {each[3] for each in rows(tab, "over")} == {name_shown(name) for name in HOSTILE}
    snippets = tab.text("#snippets")
    assert tab.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
    assert json.dumps(HOSTILE[0]) in snippets
    check_calm(tab, running, "401")


def test_what_is_copied_into_a_shell_is_one_command(
    browser: Browser, gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A name that would end the quotes, or turn the line around, stays a name."""
    for name in HOSTILE:
        scripted_upstream.listed = [name]
        running = gateway(toml(("box", scripted_upstream.url)))
        tab = show(browser, running)
        tab.go("connect")
        tab.wait_text("#snippets", "curl")
        curl = tab.text("#snippets pre")
        assert curl.isascii()
        words = shlex.split(curl.replace("\\\n", ""))
        assert (len(words), words[6]) == (8, "-d")
        assert json.loads(words[7])["model"] == name
        tab.close()


def test_no_other_page_frames_it_or_asks_in_its_name(
    browser: Browser, gateway: StartGateway
) -> None:
    """A page of another origin shows no frame of it, and reads nothing."""
    running, other = gateway(), gateway()
    tab = show(browser, other)
    address = json.dumps(f"{running.base_url}/v1/live")
    asked = tab.evaluate(f"fetch({address}).then(() => 'read', () => 'refused')")
    assert asked == "refused"
    alone = browser.open("about:blank")
    alone.evaluate(
        "document.body.append(Object.assign(document.createElement('iframe'), "
        f"{{ src: {json.dumps(running.base_url + '/')} }})) && null"
    )
    wait_until(lambda: any(map(is_error, alone.frames())), 10, "Chromium refuses to frame it")
    assert not any(url.startswith(running.base_url) for url in alone.frames())
    alone.call("goto", f"{running.base_url}/")  # which it shows where it stands alone
    assert alone.frames() == [f"{running.base_url}/"]


def is_error(url: str) -> bool:
    return url.startswith("chrome-error:")
