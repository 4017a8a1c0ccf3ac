"""Compares two configs: what differs, in words, and when each difference counts.

A pure comparison: it is made before a reload, to know whether a new worker is needed, and told
after it to the client and to the log. Each setting says at its own field when it counts;
one that does not cannot be compared. Keys and tokens are named, never shown: of what leads to a
key people paste the key itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import FieldInfo, fields, replace

from tidegate.config.convert import show_size
from tidegate.core.protocol.reload import SettingChange
from tidegate.core.settings import Effect, Model, Notify, Token, Upstream

if TYPE_CHECKING:
    from tidegate.config import LoadedConfig

MAX_SHOWN = 160  # characters of a value: a line of a terminal or two
MAX_LINES = 20  # in a summary; a thousand new models are told by their number
_HIDDEN = ("api_key_env", "api_key_file", "url_env", "url_file")


def compare(
    former: LoadedConfig, new: LoadedConfig, *, listen: Effect = Effect.NEW_WORKER
) -> list[SettingChange]:
    """List what differs, in the order of the file; keys of upstreams and tokens come last.

    `listen` is when new addresses count here: never by a reload where the service manager opened
    the sockets, and at once where they are the same ones, written differently.
    """
    changes = [
        replace(change, effect=listen) if change.effect is Effect.NEW_WORKER else change
        for change in _tables("", former.settings, new.settings)
    ]
    return [
        *changes,
        *_keys(former, new),
        *_addresses(former, new),
        *_tokens(former.tokens, new.tokens),
    ]


def summary(changes: Sequence[SettingChange]) -> str:
    """Write all changes in one line, of at most `MAX_LINES` of them."""
    if not changes:
        return "nothing changed"
    more = f"; and {len(changes) - MAX_LINES} more" if len(changes) > MAX_LINES else ""
    return "; ".join(change.text() for change in changes[:MAX_LINES]) + more


def effect_of(setting: FieldInfo) -> Effect:
    """Return when a change of this setting counts, by its field; a table has no effect itself."""
    [meta] = setting.type.__metadata__
    effect: Effect = meta.extra["effect"]
    return effect


def _tables(at: str, former: Struct, new: Struct) -> Iterator[SettingChange]:
    """Compare two tables of one kind."""
    for info in fields(new):
        old_value, new_value = getattr(former, info.name), getattr(new, info.name)
        key = f"{at}.{info.encode_name}" if at else info.encode_name
        if old_value == new_value:
            continue
        if isinstance(new_value, Struct):
            yield from _tables(key, old_value, new_value)
            continue
        effect = effect_of(info)
        if info.encode_name in ("upstream", "model", "notify"):
            yield from _lists(key, old_value, new_value, effect)
        elif info.name == "headers":
            yield from _headers(key, old_value, new_value, effect)
        elif info.name in _HIDDEN or (info.name == "url" and not isinstance(new, Upstream)):
            yield _hidden(key, old_value, new_value, effect)
        else:
            old_text, new_text = _shown(info.name, old_value), _shown(info.name, new_value)
            yield SettingChange(key=key, what="changed", old=old_text, new=new_text, effect=effect)


def _lists(
    key: str,
    former: Sequence[Upstream | Model | Notify],
    new: Sequence[Upstream | Model | Notify],
    effect: Effect,
) -> Iterator[SettingChange]:
    """Compare two lists of tables, each known by its name."""
    before, after = {each.name: each for each in former}, {each.name: each for each in new}
    for name in before:
        if name not in after:
            yield SettingChange(key=f"{key}[{name}]", what="removed", effect=effect)
    for name, each in after.items():
        if name not in before:
            yield SettingChange(key=f"{key}[{name}]", what="added", effect=effect)
        elif before[name] != each:
            yield from _tables(f"{key}[{name}]", before[name], each)
    stayed = [name for name in before if name in after]
    if stayed != [name for name in after if name in before]:
        yield SettingChange(
            key=f"{key} (order)",
            what="changed",
            old=_shown("", list(before)),
            new=_shown("", list(after)),
            effect=effect,
        )


def _headers(
    at: str, former: Mapping[str, object], new: Mapping[str, object], effect: Effect
) -> Iterator[SettingChange]:
    for name in former | new:  # type: ignore[operator]
        if former.get(name) != new.get(name):
            yield _hidden(f"{at}.{name}", former.get(name), new.get(name), effect)


def _keys(former: LoadedConfig, new: LoadedConfig) -> Iterator[SettingChange]:
    """Compare keys, headers and certificates of the upstreams that are in both configs."""
    stayed = {u.name for u in former.settings.upstreams} & {u.name for u in new.settings.upstreams}
    for name in sorted(stayed):
        old_key, new_key = former.secrets.get(name), new.secrets.get(name)
        if old_key != new_key:
            yield _hidden(f"api key of {name}", old_key, new_key, Effect.NEW_ANSWERS)
        old_headers, new_headers = former.headers.get(name, {}), new.headers.get(name, {})
        for header in sorted(old_headers.keys() & new_headers.keys()):
            if old_headers[header] != new_headers[header]:
                key = f"value of {header} of {name}"
                yield SettingChange(key=key, what="changed", effect=Effect.NEW_ANSWERS)
    for file in sorted(former.authorities.keys() & new.authorities.keys()):
        if former.authorities[file] != new.authorities[file]:
            key = f"certificates in {file}"
            yield SettingChange(key=key, what="changed", effect=Effect.NEW_ANSWERS)


def _addresses(former: LoadedConfig, new: LoadedConfig) -> Iterator[SettingChange]:
    """Compare where the receivers that are in both configs are, and where the heartbeat goes."""
    for name in sorted(former.addresses.keys() & new.addresses.keys()):
        if former.addresses[name] != new.addresses[name]:
            yield _hidden(f"address of {name}", "", "", Effect.AT_ONCE)
    if former.heartbeat_url != new.heartbeat_url:
        old, now = former.heartbeat_url, new.heartbeat_url
        yield _hidden("address of the heartbeat", old, now, Effect.AT_ONCE)


def _tokens(former: Sequence[Token], new: Sequence[Token]) -> Iterator[SettingChange]:
    before, after = _by_name(former), _by_name(new)
    for name in sorted(before.keys() | after.keys()):
        old_hash, new_hash = before.get(name), after.get(name)
        if old_hash != new_hash:
            yield _hidden(f"token {name}", old_hash, new_hash, Effect.AT_ONCE)


def _by_name(tokens: Sequence[Token]) -> Mapping[str, tuple[str, str]]:
    return {token.name: (token.sha256, token.scope) for token in tokens}


def _hidden(key: str, old: object, new: object, effect: Effect) -> SettingChange:
    """Tell that a secret came, went or changed, and nothing of what it is."""
    what = "added" if old is None else "removed" if new is None else "changed"
    return SettingChange(key=key, what=what, effect=effect)


def _shown(name: str, value: Any) -> str:
    """Write a value as the config would."""
    if value is None:
        return "auto" if name == "budget_bytes" else "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        equals = (" or ".join(each) if isinstance(each, list) else str(each) for each in value)
        text = ", ".join(equals) or "none"
    elif name.endswith("_bytes"):
        text = show_size(value)
    elif name.endswith("_s"):
        text = f"{value:g} s"
    else:
        text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
