"""From TOML tables to `Settings`: types, units, ranges and unknown keys.

`msgspec.convert` alone would stop at the first mistake. So the tables are walked along the
fields of the Structs, every mistake is noted, and the cleaned values are converted at the end.
What is wrong is left out, so that the rest can be judged too.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields, replace

from tidegate.config.mistake import MAX_PROBLEMS, Mistake
from tidegate.core.settings import KIB, MIB, Settings

GIB = 1024 * MIB

# Below these a setting does harm; whatever else is counted in seconds must be more than nothing.
_LEAST: dict[str, float] = {
    "grace_s": 0,
    "hold_s": 0,
    "disconnect_grace_s": 0,  # 0: cancel as soon as the last subscriber has gone
    "keep_finished_s": 0,  # 0: no resuming after the end
    "stop_limit_s": 0,
    "skip_s": 0,
    "recycle_after_s": 0,  # 0: a worker's age alone is no reason
    "max_queued": 0,  # 0: refuse instead of queueing
    "max_concurrent": 0,  # 0: no limit of ours
    "recycles_per_hour": 0,
    "window_bytes": 64 * KIB,  # one segment of a window
    "max_body_bytes": KIB,
    "max_bytes": 256 * KIB,  # of the journal: a handful of answers
    "max_rows": 0,  # 0: no history
    "input": 0,  # a price
    "output": 0,
    "cached": 0,
    "budget_bytes": 128 * MIB,  # two workers need this much; see also LEAST_BUDGET_BYTES
}
_LEAST_SECONDS = 0.001
_MOST_SHOWN = 80  # characters of an unknown key
_MOST_SECONDS = 366 * 86400.0  # timers of event loops overflow far beyond it
_MOST_COUNT = 1_000_000
_MOST_BYTES = 1024 * GIB

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]i?B)", re.IGNORECASE)
_UNITS = {"kib": KIB, "mib": MIB, "gib": GIB, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_NUMBER = r"(\d{1,12}(?:\.\d{1,6})?)"
_DURATION = re.compile(
    "".join(rf"(?:{_NUMBER}\s*{unit}\s*)?" for unit in ("d", "h", "m(?:in)?", "s", "ms"))
)
_SECONDS = (86400.0, 3600.0, 60.0, 1.0, 0.001)  # of each of these units
_SHOWN_UNITS = (
    *(("GiB", GIB), ("MiB", MIB), ("KiB", KIB)),
    *(("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)),
)
# What other programs call it.
_ELSEWHERE = {
    **dict.fromkeys(("base_url", "api_base", "endpoint"), "url"),
    **dict.fromkeys(("host", "port", "bind", "address"), "listen"),
}

_EXPECTED: dict[object, str] = {
    float: 'a number of seconds, or a text such as "90s", "2m" or "1h30m"',
    int: "a whole number",
    str: 'a text in quotes, "…"',
    bool: "true or false",
    list[str]: 'a list of texts, ["…", "…"]',
    list[str | list[str]]: 'a list of texts, ["…", "…"]; equals stand in a list of their own, '
    '[["…", "…"], "…"], and no deeper',
}


def to_settings(table: Mapping[str, object], problems: list[Mistake]) -> Settings:
    """Make settings of `table`. What is wrong is appended to `problems` and has its default.

    A text that has no default is empty then.
    """
    return msgspec.convert(_table(Settings, table, "", problems), Settings)


@functools.cache  # `fields` evaluates every annotation anew
def _fields(kind: type[Struct]) -> list[FieldInfo]:
    """Return the fields with their plain types, without when a change of them counts."""
    return [
        replace(info, type=get_args(info.type)[0]) if get_origin(info.type) is Annotated else info
        for info in fields(kind)
    ]


def _table(
    kind: type[Struct], table: Mapping[str, object], at: str, problems: list[Mistake]
) -> dict[str, object]:
    known = {info.encode_name: info for info in _fields(kind)}
    cleaned: dict[str, object] = {}
    for key, value in table.items():
        shown = key if len(key) <= _MOST_SHOWN else f"{key[:_MOST_SHOWN]}…"
        path = f"{at}.{shown}" if at else shown
        if key not in known:
            # To look for what was meant takes some time, and only so many are told.
            text = _unknown(shown, known) if len(problems) < MAX_PROBLEMS else "unknown key"
            problems.append(Mistake(path, text))
            continue
        before = len(problems)
        good = _value(known[key], value, path, problems)
        if _struct_in(known[key].type) or len(problems) == before:
            cleaned[key] = good
    for key, info in known.items():
        if _is_required(info) and key not in cleaned:
            cleaned[key] = [] if get_origin(info.type) is list else ""
            if key not in table:
                problems.append(Mistake(f"{at}.{key}", "is missing"))
    return cleaned


def _value(info: FieldInfo, value: object, path: str, problems: list[Mistake]) -> object:
    if table := _struct_in(info.type):
        return _tables(table, info, value, path, problems)
    if info.name.endswith("_bytes"):
        return _size(info, value, path, problems)
    if info.name == "listen" and isinstance(value, str):
        return [value]
    if info.name == "headers":
        return _headers(value, path, problems)
    kind = _plain_type(info.type)
    if kind is float and info.name.endswith("_s") and isinstance(value, str):
        value = _read_duration(value)
    expected = "a number" if kind is float and not info.name.endswith("_s") else _EXPECTED[kind]
    try:
        plain: object = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        problems.append(Mistake(path, f"must be {expected}"))
        return value
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        _check_range(info, plain, path, problems)
    return plain


def _tables(
    kind: type[Struct], info: FieldInfo, value: object, path: str, problems: list[Mistake]
) -> object:
    """Clean a table, or a list of tables, that becomes one Struct each."""
    if info.type is kind:
        if isinstance(value, dict):
            return _table(kind, value, path, problems)
        problems.append(Mistake(path, f"must be a table, [{path}]"))
        return {}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [_table(kind, item, f"{path}[{n}]", problems) for n, item in enumerate(value)]
    problems.append(Mistake(path, f"must be a list of tables, each begun by [[{path}]]"))
    return []


def _headers(value: object, path: str, problems: list[Mistake]) -> dict[str, object]:
    """Clean a table of headers: names with texts, or with where a secret text is kept."""
    if not isinstance(value, dict):
        problems.append(Mistake(path, f"must be a table, [{path}]"))
        return {}
    good = {name: each for name, each in value.items() if _is_header_value(each)}
    problems += [
        Mistake(
            f"{path}.{name}",
            'must be a text in quotes, { env = "VARIABLE" } or { file = "name" }',
        )
        for name in value
        if name not in good
    ]
    return good


def _is_header_value(value: object) -> bool:
    if isinstance(value, dict):
        [source, text] = next(iter(value.items()), (None, None))
        return len(value) == 1 and source in ("env", "file") and isinstance(text, str)
    return isinstance(value, str)


def _size(info: FieldInfo, value: object, path: str, problems: list[Mistake]) -> int | None:
    auto = " or auto" if info.name == "budget_bytes" else ""
    if auto and value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = round(float(match[1]) * _UNITS[match[2].lower()])
    else:
        sizes = '"512KiB", "4MiB", "32MB" or "1GiB"'
        problems.append(Mistake(path, f"must be a size such as {sizes}{auto}, or bytes"))
        return None
    _check_range(info, size, path, problems)
    return size


def _read_duration(text: str) -> float | None:
    """Read "90s", "2 min" or "1h30m" as seconds; None where it is no duration."""
    match = _DURATION.fullmatch(text.strip()) if text.strip() else None
    if match is None:
        return None
    return sum(
        float(number) * unit
        for number, unit in zip(match.groups(), _SECONDS, strict=True)
        if number
    )


def _check_range(info: FieldInfo, value: float, path: str, problems: list[Mistake]) -> None:
    show: Callable[[float], str]
    if info.name.endswith("_s"):
        least, most, show = _LEAST.get(info.name, _LEAST_SECONDS), _MOST_SECONDS, "{:g} s".format
    elif info.name.endswith("_bytes"):
        least, most, show = _LEAST[info.name], _MOST_BYTES, show_size
    else:
        least, most, show = _LEAST.get(info.name, 1), _MOST_COUNT, "{:.0f}".format
    if isinstance(value, float) and not math.isfinite(value):  # whole numbers may be any size
        problems.append(Mistake(path, "must be a finite number"))
    elif value < least:
        problems.append(Mistake(path, f"must be at least {show(least)}"))
    elif value > most:
        problems.append(Mistake(path, f"must be at most {show(most)}"))


def show_size(size: float) -> str:
    """Write a size as in the config file, "4MiB"."""
    for unit, factor in _SHOWN_UNITS:
        if size >= factor and size % factor == 0:
            return f"{int(size // factor)}{unit}"
    return f"{int(size)} bytes"


def _unknown(key: str, known: Mapping[str, object]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  (only for a file with a mistake in it)

    if key == "api_key":
        return (
            "a key does not belong into this file: name a 0600 file with api_key_file, or an "
            "environment variable with api_key_env"
        )
    near = [_ELSEWHERE[key]] if _ELSEWHERE.get(key) in known else get_close_matches(key, known, 1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    for info in _fields(Settings):
        table = _struct_in(info.type)
        if table and key in {inner.encode_name for inner in _fields(table)}:
            return f"unknown key here; it belongs under [{info.encode_name}]"
    return "unknown key"


def _is_required(info: FieldInfo) -> bool:
    return info.default is NODEFAULT and info.default_factory is NODEFAULT


def _struct_in(kind: object) -> type[Struct] | None:
    """Return the Struct that `kind` is, or is a list of; None for any other type."""
    inner = kind if isinstance(kind, type) else next(iter(get_args(kind)), None)
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def _plain_type(kind: object) -> object:
    """Return `float` for `float | None`: TOML has no null, so None is never written."""
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    return choices[0] if type(None) in get_args(kind) else kind
