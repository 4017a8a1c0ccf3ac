"""`tidegate check` of a bad config: where to look, on a screen of 80 columns."""

from __future__ import annotations

import pytest

BOX = '[[upstream]]\nname = "box"\n'
SECRET = "3f9a1c77e0"  # like no key that could be recognised by its looks


def check(tidegate, text: str) -> list[str]:
    """What is said of a config with this text, by lines."""
    tidegate.config.write_text(text)
    code, out, err = tidegate("check")
    assert (code, out) == (78, "")
    assert err.count(str(tidegate.config)) == 1
    first, *lines = err.splitlines()
    assert first.startswith(f"tidegate: {tidegate.config}: ")
    assert max(map(len, lines)) <= 80
    return lines


def test_each_mistake_has_its_line_and_a_caret(tidegate) -> None:
    """Under the value that is wrong, under a key that is unknown; the file's name stands once."""
    text = 'listen = "box.lan:8433"\n\n[limits]\n  idles = 3\nidle_s = "soon"\n'
    lines = check(tidegate, text)
    at = lines.index('  1 | listen = "box.lan:8433"')
    assert lines[at + 1] == "    |          ^"
    at = lines.index("  4 |   idles = 3")
    assert lines[at - 1].startswith("line 4: limits.idles: unknown key; did you mean idle_s?")
    assert lines[at + 1] == "    |   ^"
    at = lines.index('  5 | idle_s = "soon"')
    assert lines[at + 1] == "    |          ^"


def test_what_is_missing_is_looked_for_in_its_table(tidegate) -> None:
    """There is no line of its own for it."""
    lines = check(tidegate, BOX)
    assert lines[-3:] == ["line 1: upstream[0].url: is missing", "  1 | [[upstream]]", "    | ^"]


@pytest.mark.parametrize(
    ("text", "place", "caret"),
    [
        ("listen = [\n  1 2\n]\n", "  2 |   1 2", "    |     ^"),
        ('listen = "a', '  1 | listen = "a', "    |            ^"),
        ("a = 1\nb =\n", "  2 | b =", "    |    ^"),
    ],
)
def test_a_text_that_is_no_toml_has_its_place_too(tidegate, text, place, caret) -> None:
    """As its parser names it: a line and a column, or the end of the file."""
    lines = check(tidegate, text)
    assert lines[-2:] == [place, caret]


@pytest.mark.parametrize(
    "text",
    [
        f'api_key = "{SECRET}"\n',
        f"api_key = {SECRET}\n",
        f'{BOX}api_key = "{SECRET}"\n',
        f'{BOX}url = "http://me:{SECRET}@/"\n',
        f"{BOX}url = 'http://me:{SECRET}@/'\n",
        f'{BOX}url = "http://x"\napi_key_env = "{SECRET}!"\n',
        f'{BOX}url = "http://x"\nheaders = {{ x-key = "{SECRET}", y = 1 }}\n',
        f'{BOX}api_key_file = "{SECRET}\n',
        f"{SECRET} = = 1\n",
        f"listen = 3 # {SECRET}\nlisten = 4\n",
    ],
)
def test_no_line_shows_what_may_be_a_key(tidegate, text) -> None:
    """Wherever it stands by mistake, also in a text that is no TOML."""
    shown = [line for line in check(tidegate, text) if " | " in line]
    assert shown
    assert not any(SECRET in line for line in shown)


def test_a_long_line_is_cut_around_the_place(tidegate) -> None:
    """The caret stays in sight, and what it points at."""
    many = ", ".join(f'"127.0.0.1:{port}"' for port in range(1000, 1012))
    lines = check(tidegate, f"listen = [{many}, oops]\n")
    place, caret = lines[-2:]
    assert place[caret.index("^") :].startswith("oops")


def test_a_file_that_cannot_be_read_is_one_sentence(tidegate) -> None:
    """There is no line to show."""
    tidegate.config.unlink()
    code, _, err = tidegate("check")
    assert (code, err.count("\n")) == (78, 1)
    assert "there is no such file" in err


def test_a_text_that_is_no_utf_8_names_its_line(tidegate) -> None:
    """And shows nothing of it."""
    tidegate.config.write_bytes(b"a = 1\nb = \xff\n")
    code, _, err = tidegate("check")
    assert code == 78
    assert f"{tidegate.config}:2: " in err
