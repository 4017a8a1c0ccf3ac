"""The page's files: what there is, for whom, with which headers, and what they may not do."""

from __future__ import annotations

import re

import pytest

from fakes.client import get
from gateway.gateway_rig import scoped
from tidegate.gateway.page.assets import DIRECTORY, FILES, INDEX

HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
VENDORED = {"uplot.js", "uplot.css"}
MOST_BYTES = 120 * 1024
KEY = "tg-some-key"


def text(name: str) -> str:
    return (DIRECTORY / name).read_text()


async def test_a_browser_gets_the_page_and_the_rest_a_line(rigs, scripted_upstream) -> None:
    """Both from `/`, by what they accept; caches are told so. No token is needed for the shell."""
    rig = await rigs(scripted_upstream, tokens=[scoped(KEY)])
    page = await get(rig.base_url, "/", headers=HTML)
    line = await get(rig.base_url, "/")
    assert page.body.decode() == text(INDEX)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert line.body.startswith(b"tidegate ")
    assert page.headers["vary"] == line.headers["vary"] == "Accept"


async def test_every_file_is_served_with_its_type_and_a_strict_policy(
    rigs, scripted_upstream
) -> None:
    """Nothing from elsewhere, no frame around it, no guessing of types, no referrer."""
    rig = await rigs(scripted_upstream, tokens=[scoped(KEY)])
    for name, kind in FILES.items():
        answer = await get(rig.base_url, f"/page/{name}")
        assert (answer.status, answer.headers["content-type"]) == (200, kind), name
        assert bytes(answer.body) == (DIRECTORY / name).read_bytes()
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy == [
            "default-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_a_file_that_did_not_change_is_not_sent_again(rigs, scripted_upstream) -> None:
    """By its content, so that a new version's is."""
    rig = await rigs(scripted_upstream)
    first = await get(rig.base_url, "/page/main.js")
    again = await get(
        rig.base_url, "/page/main.js", headers={"If-None-Match": first.headers["etag"]}
    )
    other = await get(rig.base_url, "/page/main.js", headers={"If-None-Match": '"other"'})
    assert (again.status, bytes(again.body), other.status) == (304, b"", 200)


@pytest.mark.parametrize(
    "path",
    ["/page/uplot.LICENSE", "/page/nothing.js", "/page/..", "/page/.", "/page/", "/page/%2e%2e"],
)
async def test_nothing_else_is_served(rigs, scripted_upstream, path: str) -> None:
    """Only what the table names, whatever lies in the directory or beside it."""
    rig = await rigs(scripted_upstream)
    assert (await get(rig.base_url, path)).status == 404


def test_the_table_has_every_file_but_the_licence() -> None:
    """What lies there is served, or a licence."""
    there = {path.name for path in DIRECTORY.iterdir() if path.is_file()}
    assert there - set(FILES) == {"uplot.LICENSE"}
    assert set(FILES) <= there


def test_the_page_is_small() -> None:
    """All of it, as it lies there."""
    assert sum((DIRECTORY / name).stat().st_size for name in FILES) <= MOST_BYTES


@pytest.mark.parametrize("name", sorted(set(FILES) - VENDORED))
def test_nothing_is_fetched_from_elsewhere_and_nothing_is_made_of_text(name: str) -> None:
    """No other host is asked, no text becomes markup or code, no style stands inline."""
    source = text(name)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "DOMParser",
    ):
        assert word not in source, word
    assert not re.search(r"new Function|setTimeout\(\s*[\"'`]", source)
    assert not re.search(r"\s(style|on[a-z]+)=", source) or name.endswith(".js")
    if name.endswith(".html"):
        assert not re.search(r"(src|href)=\"(?!/page/|#)", source)
        assert "<style" not in source
        assert not re.search(r"<script(?![^>]*\bsrc=)", source)
    if name.endswith(".js"):
        found = re.findall(r"(?:fetch|ask|askJson)\(\s*[\"'`]([^\"'`]*)", source)
        assert all(path.startswith("/v1/") for path in found), found
        imported = re.findall(r"from \"([^\"]+)\"", source)
        assert all(path.removeprefix("./") in FILES for path in imported), imported


def test_every_element_that_the_scripts_ask_for_is_there() -> None:
    """A name that is wrong would only show when that part of the page is opened."""
    there = set(re.findall(r"\bid=\"([\w-]+)\"", text(INDEX)))
    asked: set[str] = set()
    for name in FILES:
        if name.endswith(".js") and name not in VENDORED:
            asked |= set(re.findall(r"\$\(\"([\w-]+)\"\)", text(name)))
    assert asked <= there
    labelled = re.findall(r"aria-labelledby=\"([\w-]+)\"|for=\"([\w-]+)\"", text(INDEX))
    assert {first or second for first, second in labelled} <= there
