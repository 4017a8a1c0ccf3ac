"""What differs between two configs, when it counts, and what of it may be shown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

from tidegate.config import LoadedConfig
from tidegate.config.changes import MAX_LINES, compare, effect_of, summary
from tidegate.core.settings import (
    MIB,
    DrainLimits,
    Effect,
    HeaderSource,
    LimitOverrides,
    Limits,
    Memory,
    Model,
    Notify,
    Settings,
    Token,
    Upstream,
)

BOX = Upstream(name="box", url="http://127.0.0.1:8080")
CLOUD = Upstream(name="cloud", url="https://api.example.com")
FAST = Model(name="fast", targets=["box/m"])
CANARY = "sk-CANARY-5d1f"


def loaded(
    settings: Settings | None = None,
    secrets: dict[str, str] | None = None,
    tokens: dict[str, str] | None = None,
) -> LoadedConfig:
    """A config as it was loaded; tokens by name."""
    return LoadedConfig(
        settings=settings or Settings(),
        secrets=secrets or {},
        tokens=[Token(name=name, sha256=text * 64) for name, text in (tokens or {}).items()],
        path=None,
        place=Path("/nowhere"),
        warnings=[],
    )


PHONE = Notify(name="phone")
FULL = Settings(upstreams=[BOX], models=[FAST], notify=[PHONE])


def lines(former: Settings, new: Settings) -> list[str]:
    return [change.text() for change in compare(loaded(former), loaded(new))]


def effects(kind: type[Struct]) -> dict[str, Effect]:
    """When each setting of a table counts, by its name in the file; tables in it are left out."""
    plain = [info for info in fields(kind) if not isinstance(info.type, type)]
    return {info.encode_name: effect_of(info) for info in plain}


@pytest.mark.parametrize("kind", [Settings, Upstream, Model])
def test_every_setting_says_when_it_counts(kind: type[Struct]) -> None:
    """At its own field; what says nothing can only be a table, whose settings say it."""
    silent = [info.type for info in fields(kind) if info.encode_name not in effects(kind)]
    for table in silent:
        assert issubclass(table, Struct), f"{kind} has a setting without an effect"
        test_every_setting_says_when_it_counts(table)


def other(value: Any, kind: str) -> Any:
    """A value of the same kind that differs."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case list():
            return [*value, "another"]
    return "x" if "str" in kind else 7


def leaves(value: Struct, at: str = "") -> Iterator[tuple[str, Effect, Struct]]:
    """Each plain setting's key and effect, and `value` with that one changed."""
    for info in fields(value):
        inner, key = getattr(value, info.name), f"{at}{info.encode_name}"
        if isinstance(inner, Struct):
            for name, effect, changed in leaves(inner, f"{key}."):
                yield name, effect, replace(value, **{info.name: changed})
        elif info.encode_name == "headers":
            effect, changed = effects(type(value))["headers"], {**inner, "X-New": CANARY}
            yield f"{key}.X-New", effect, replace(value, headers=changed)
        elif info.encode_name in ("upstream", "model", "notify"):
            [entry] = inner
            for name, effect, changed in leaves(entry, f"{key}[{entry.name}]."):
                if not name.endswith("].name"):  # another name is another entry
                    yield name, effect, replace(value, **{info.name: [changed]})
        else:
            effect = effects(type(value))[info.encode_name]
            yield key, effect, replace(value, **{info.name: other(inner, str(info.type))})


LEAVES = list(leaves(FULL))


@pytest.mark.parametrize(("key", "effect", "changed"), LEAVES, ids=[key for key, _, _ in LEAVES])
def test_each_setting_that_changes_is_one_change(
    key: str, effect: Effect, changed: Settings
) -> None:
    """Whichever setting differs, it alone is told, by its key and with when it counts."""
    [change] = compare(loaded(FULL), loaded(changed))
    assert (change.key, change.effect) == (key, effect)
    assert summary([change]) == change.text()


def test_the_walk_above_has_reached_every_table() -> None:
    """Limits of all, of one upstream and of one model are among what was changed one by one."""
    keys = {key for key, _, _ in LEAVES}
    assert {f"limits.{info.encode_name}" for info in fields(Limits)} <= keys
    for at in ("upstream[box].limits", "model[fast].limits"):
        assert {f"{at}.{info.encode_name}" for info in fields(LimitOverrides)} <= keys
    assert {"memory.growth.skip_s", "drain.stop_limit_s", "auth.tokens_file"} <= keys


def test_headers_and_certificates_are_named_and_never_shown() -> None:
    """Which header came, went or has another value, wherever that is kept."""
    old = replace(
        BOX, headers={"X-Plain": CANARY, "X-Gone": "a", "X-Secret": HeaderSource(env="A")}
    )
    new = replace(
        BOX,
        ca_file="ca.pem",
        headers={"X-Plain": "b", "X-New": CANARY, "X-Secret": HeaderSource(env="A")},
    )
    former = dataclasses.replace(
        loaded(replace(FULL, upstreams=[replace(old, ca_file="ca.pem")])),
        headers={"box": {"X-Secret": CANARY}},
        authorities={"ca.pem": "one"},
    )
    later = dataclasses.replace(
        loaded(replace(FULL, upstreams=[new])),
        headers={"box": {"X-Secret": f"{CANARY}2"}},
        authorities={"ca.pem": "two"},
    )
    changes = compare(former, later)
    assert {change.text() for change in changes} == {
        "upstream[box].headers.X-Plain: changed",
        "upstream[box].headers.X-Gone: removed",
        "upstream[box].headers.X-New: added",
        "value of X-Secret of box: changed",
        "certificates in ca.pem: changed",
    }
    assert CANARY not in repr(changes)


def test_equal_configs_have_no_changes() -> None:
    """Nothing is made up: the same settings, keys and tokens differ in nothing."""
    both = [loaded(FULL, {"box": CANARY}, {"laptop": "a"}) for _ in range(2)]
    assert compare(*both) == []
    assert summary([]) == "nothing changed"


def test_values_are_said_as_in_the_file() -> None:
    """Sizes and times have their units, lists their commas, and what is unset says so."""
    assert lines(
        Settings(),
        Settings(
            listen=["0.0.0.0:8433", "unix:/x"],
            allowed_hosts=["a.example"],
            limits=Limits(idle_s=60.5, window_bytes=2 * MIB),
            memory=Memory(budget_bytes=512 * MIB),
            drain=DrainLimits(stop_limit_s=0),
        ),
    ) == [
        "listen: 127.0.0.1:8433 → 0.0.0.0:8433, unix:/x",
        "allowed_hosts: none → a.example",
        "limits.idle_s: 120 s → 60.5 s",
        "limits.window: 4MiB → 2MiB",
        "memory.budget: auto → 512MiB",
        "drain.stop_limit_s: 30 s → 0 s",
    ]
    slow = replace(BOX, limits=LimitOverrides(total_s=9.0), max_concurrent=2, ask_usage=True)
    assert lines(Settings(upstreams=[BOX]), Settings(upstreams=[slow])) == [
        "upstream[box].max_concurrent: 0 → 2",
        "upstream[box].ask_usage: false → true",
        "upstream[box].limits.total_s: unset → 9 s",
    ]


def test_upstreams_and_models_are_known_by_their_names() -> None:
    """One that moved in the list is the same; one that came or went is named, not its place."""
    assert lines(Settings(upstreams=[BOX]), Settings(upstreams=[CLOUD, BOX])) == [
        "upstream[cloud]: added"
    ]
    assert lines(Settings(upstreams=[BOX, CLOUD]), Settings(upstreams=[CLOUD])) == [
        "upstream[box]: removed"
    ]
    assert lines(Settings(upstreams=[BOX, CLOUD]), Settings(upstreams=[CLOUD, BOX])) == [
        "upstream (order): box, cloud → cloud, box"
    ]
    equals = replace(FAST, targets=[["box/m", "cloud/m"], "box/small"])
    assert lines(replace(FULL, models=[FAST]), replace(FULL, models=[equals])) == [
        "model[fast].targets: box/m → box/m or cloud/m, box/small"
    ]
    turned = replace(FAST, targets=["cloud/m", "box/m"])
    assert lines(Settings(models=[FAST]), Settings(models=[turned])) == [
        "model[fast].targets: box/m → cloud/m, box/m"
    ]


def test_keys_and_tokens_are_named_and_never_shown() -> None:
    """Of a key or token one reads that it came, went or changed; not even its hash is told."""
    settings = Settings(upstreams=[BOX, CLOUD])
    former = loaded(settings, {"box": CANARY}, {"laptop": "a", "phone": "b", "desk": "c"})
    new = loaded(
        settings, {"box": f"{CANARY}2", "cloud": CANARY}, {"phone": "d", "tv": "e", "desk": "c"}
    )
    changes = compare(former, new)
    assert [change.text() for change in changes] == [
        "api key of box: changed",
        "api key of cloud: added",
        "token laptop: removed",
        "token phone: changed",
        "token tv: added",
    ]
    assert b"CANARY" not in msgspec.json.encode(changes)
    scope = [replace(former.tokens[0], scope="read"), *former.tokens[1:]]
    [change] = compare(former, dataclasses.replace(former, tokens=scope))
    assert change.text() == "token laptop: changed"
    assert not any(hash_of * 64 in repr(changes) for hash_of in "abcde")


@pytest.mark.parametrize("key", ["api_key_env", "api_key_file"])
def test_what_leads_to_a_key_is_not_shown_either(key: str) -> None:
    """People put the key itself where the name of a variable or a file belongs."""
    former, new = (replace(BOX, **{key: f"{CANARY}{n}"}) for n in (1, 2))
    for pair, what in (((BOX, new), "added"), ((former, new), "changed"), ((new, BOX), "removed")):
        [line] = lines(*(Settings(upstreams=[each]) for each in pair))
        assert line == f"upstream[box].{key}: {what}"


def test_addresses_are_named_and_never_shown() -> None:
    """Wherever they are kept: most hold a token."""
    url = f"https://h/{CANARY}"
    keys = ("url", "url_env", "url_file")
    for key in keys:
        [line] = lines(
            replace(FULL, notify=[PHONE]), replace(FULL, notify=[replace(PHONE, **{key: url})])
        )
        assert line == f"notify[phone].{key}: added"
    former, new = (
        dataclasses.replace(
            loaded(FULL), addresses={"phone": f"{url}{n}"}, heartbeat_url=f"{url}{n}"
        )
        for n in (1, 2)
    )
    changes = compare(former, new)
    assert [change.text() for change in changes] == [
        "address of phone: changed",
        "address of the heartbeat: changed",
    ]
    assert CANARY not in repr(changes)
    assert lines(Settings(), Settings(notify=[PHONE])) == ["notify[phone]: added"]


@pytest.mark.parametrize("effect", [Effect.RESTART, Effect.AT_ONCE])
def test_when_listen_counts_depends_on_the_sockets(effect: Effect) -> None:
    """Where systemd opened them a reload cannot follow, and another spelling needs nothing."""
    new = loaded(Settings(listen=["127.0.0.1:1"], allowed_hosts=["a.example"]))
    by_key = {each.key: each.effect for each in compare(loaded(), new, listen=effect)}
    assert by_key == {"listen": effect, "allowed_hosts": Effect.AT_ONCE}


def test_a_summary_is_bounded() -> None:
    """A thousand new upstreams, or a list of a thousand names, do not fill the log."""
    many = Settings(upstreams=[replace(BOX, name=f"box{n}") for n in range(1000)])
    text = summary(compare(loaded(), loaded(many)))
    assert text.endswith(f"; and {1000 - MAX_LINES} more")
    hosts = Settings(allowed_hosts=[f"host{n}.example" for n in range(1000)])
    assert len(summary(compare(loaded(), loaded(hosts)))) < 300


def test_the_documentation_says_the_same() -> None:
    """docs/config.md names under "at once" exactly the limits that count at once."""
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    [row] = re.findall(r"^\| at once \|(.*)\|$", text, re.MULTILINE)
    before, _, limits = row.partition("of `[limits]`:")
    at_once = [name for name, effect in effects(Limits).items() if effect is Effect.AT_ONCE]
    assert re.findall(r"`(\w+)`", limits) == at_once
    for name, table in (("memory", Memory), ("drain", DrainLimits)):
        assert f"`[{name}]`" in before
        assert set(effects(table).values()) == {Effect.AT_ONCE}
