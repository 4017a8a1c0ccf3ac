"""A bundle: one JSON document of evidence, for a person to read and a program to replay.

A directory holds at most 8 of them and 8 MiB; the oldest go first, before the next is written.
Each is at most 1 MiB: whatever is too long is shortened, the longest lists first, and the
document says so. It is written under a temporary name, so that a bundle with a name is whole.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from tidegate.core.decoding import Decoder, Undecodable
from tidegate.core.settings import KIB, MIB
from tidegate.core.text import visible_json
from tidegate.machine.private_file import check_own_directory

FORMAT = 1
DIRECTORY = "bundles"
MAX_BUNDLE_BYTES = MIB
MAX_FILES = 8
MAX_TOTAL_BYTES = 8 * MIB
MAX_SLUG_LENGTH = 40
TIMELINES = ("samples", "decisions")
SHORTENED_TO = (100, 25, 5, 0)  # items that the long lists keep, tried in turn
MAX_SECTION_BYTES = 64 * KIB  # of what is no list, if even empty lists were not enough

Section = object  # what msgspec encodes: Structs, dicts, lists, Raw
_TEMPORARY = ".unfinished-"


def write(state_dir: Path, sections: dict[str, Section], kind: str, reason: str, at: float) -> Path:
    """Write a bundle, making room; return its path. `at` is Unix seconds. Raises OSError."""
    directory = state_dir / DIRECTORY
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        check_own_directory(directory)  # a link would have us remove what is elsewhere
    directory.chmod(0o700)
    document = fit(sections)
    make_room(directory, len(document))
    name = new_name(kind, reason, at, {path.name for path in directory.iterdir()})
    unfinished = directory / f"{_TEMPORARY}{name}"
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
            file.write(document)
            file.flush()
            os.fsync(fd)
        unfinished.rename(directory / name)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return directory / name


def new_name(kind: str, reason: str, at: float, taken: set[str]) -> str:
    """Name it "20261122T234512Z-kill-no-heartbeat.json": sorted by time, none given twice."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    words = re.sub(r"[^a-z0-9]+", "-", f"{kind}-{reason}".lower())[:MAX_SLUG_LENGTH].strip("-")
    numbered = re.compile(re.escape(stamp) + r"(?:\.(\d+))?-")
    earlier = [int(found[1] or 0) for name in taken if (found := numbered.match(name))]
    # "." sorts behind "-": the second of one second comes after the first.
    number = f".{max(earlier) + 1:02d}" if earlier else ""
    return f"{stamp}{number}-{words}.json"


def make_room(directory: Path, new_bytes: int) -> None:
    """Remove the oldest bundles until one more fits, and what was never finished."""
    for unfinished in directory.glob(f"{_TEMPORARY}*"):
        unfinished.unlink(missing_ok=True)
    sizes = {path: path.lstat().st_size for path in sorted(directory.glob("*.json"))}
    for oldest in list(sizes):
        if len(sizes) < MAX_FILES and sum(sizes.values()) + new_bytes <= MAX_TOTAL_BYTES:
            break
        oldest.unlink(missing_ok=True)
        del sizes[oldest]


def fit(sections: dict[str, Section]) -> bytes:
    """Make the document, shortened until it is no longer than a bundle may be."""
    document = render(sections)
    for most in SHORTENED_TO:
        if len(document) <= MAX_BUNDLE_BYTES:
            break
        short = {name: _shorten(name, each, most) for name, each in sections.items()}
        short["shortened"] = f"too long for {MAX_BUNDLE_BYTES} bytes: lists end after {most} items"
        document = render(short)
    else:
        if len(document) > MAX_BUNDLE_BYTES:
            small = {
                name: each
                for name, each in sections.items()
                if not isinstance(each, list)
                and len(msgspec.json.encode(each)) <= MAX_SECTION_BYTES
            }
            document = render({**small, "shortened": "too long: the large parts are left out"})
    return document


def _shorten(name: str, section: Section, most: int) -> Section:
    """Keep the last items of a timeline, and the first ones of other lists."""
    if isinstance(section, list):
        return section[max(0, len(section) - most) :] if name in TIMELINES else section[:most]
    if isinstance(section, dict):
        return {inner: _shorten(inner, each, most) for inner, each in section.items()}
    return section


def render(sections: dict[str, Section]) -> bytes:
    """Write one section after the other: a list has an item a line, anything else is indented.

    People look at it on a terminal, and reasons come from elsewhere.
    """
    parts = [
        msgspec.json.encode(name) + b": " + _render_section(section)
        for name, section in sections.items()
    ]
    return visible_json((b"{\n" + b",\n".join(parts) + b"\n}\n").decode()).encode()


def _render_section(section: Section) -> bytes:
    if isinstance(section, list):
        return b"[\n" + b",\n".join(msgspec.json.encode(item) for item in section) + b"\n]"
    return msgspec.json.format(msgspec.json.encode(section), indent=2)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of bundles needs of one."""

    format: int
    decisions: list[msgspec.Raw] = []


_head = Decoder(Head)


def read_decisions(document: bytes) -> list[msgspec.Raw] | None:
    """Read the decision records in a bundle; None when it is not one that we know."""
    with suppress(Undecodable):
        head = _head.decode(document)
        return head.decisions if head.format == FORMAT else None
    return None
