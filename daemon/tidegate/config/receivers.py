"""What must hold for the receivers of notices and the heartbeat, as far as the settings tell it.

Whether an address is one is judged where it is read (`config.keys`): it may be kept elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tidegate.config.mistake import Mistake
from tidegate.core.notices.quiet import parse_quiet
from tidegate.core.problems import Severity
from tidegate.core.settings import MOST_RECEIVERS, Notify, OutwardHeartbeat, Settings

LEAST_HEARTBEAT_S = 5.0  # what is asked more often takes it for an attack
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find_receiver_problems(settings: Settings) -> Iterator[Mistake]:
    """Yield what is wrong with `[[notify]]` and `[heartbeat]`."""
    if len(settings.notify) > MOST_RECEIVERS:
        yield Mistake("notify", f"has more than {MOST_RECEIVERS} receivers")
    names: set[str] = set()
    for n, receiver in enumerate(settings.notify):
        at = f"notify[{n}]"
        yield from _receiver(receiver, at)
        if receiver.name in names:
            text = f"another one is called {receiver.name!r} already; name each"
            yield Mistake(f"{at}.name", text)
        names.add(receiver.name)
    yield from _one_address(settings.heartbeat, "heartbeat")
    if settings.heartbeat.every_s < LEAST_HEARTBEAT_S:
        yield Mistake("heartbeat.every_s", f"must be at least {LEAST_HEARTBEAT_S:g} s")


def _receiver(receiver: Notify, at: str) -> Iterator[Mistake]:
    if not _NAME.fullmatch(receiver.name):
        yield Mistake(
            f"{at}.name",
            "must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit",
        )
    if receiver.min_severity not in (severity.value for severity in Severity):
        yield Mistake(f"{at}.min_severity", 'must be "note", "warning" or "error"')
    if receiver.quiet is not None:
        try:
            parse_quiet(receiver.quiet)
        except ValueError as error:
            yield Mistake(f"{at}.quiet", str(error))
    if not _addresses(receiver):
        yield Mistake(f"{at}.url", "is missing; url_file or url_env may stand in its place")
    yield from _one_address(receiver, at)


def _addresses(place: Notify | OutwardHeartbeat) -> list[str]:
    """List which of the three keys for an address are set."""
    keys = ("url", "url_file", "url_env")
    return [key for key in keys if getattr(place, key) is not None]


def _one_address(place: Notify | OutwardHeartbeat, at: str) -> Iterator[Mistake]:
    if len(found := _addresses(place)) > 1:
        yield Mistake(f"{at}.{found[1]}", f"is there beside {found[0]}; keep one of them")
