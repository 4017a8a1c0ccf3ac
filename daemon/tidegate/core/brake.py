"""Wrong keys by the address that they come from: a brake on guessing, and a line for the log.

A leaky bucket for each address: `FREE` wrong keys at once, and one more every `EVERY_S`. What comes
faster is told to come back later. The brake says nothing of a key that is good: behind one address
there may be a whole house, and a neighbour's wrong key must not lock the others out. So it slows no
attack on 256 random bits, of which none can be guessed; it keeps a client with a wrong key from
asking without end, and tells its owner.

The book is bounded: of more than `MOST_ADDRESSES` the one that was wrong longest ago is forgotten,
which at worst gives it its free tries again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from msgspec import Struct

FREE = 10  # a person with a stale key and a client that tries again three times
EVERY_S = 6.0  # ten a minute
MOST_ADDRESSES = 4096  # some 250 bytes each: 1 MiB
REPORT_EVERY_S = 60.0
MOST_NAMED = 3  # addresses in a report


class Source(Struct, frozen=True):
    """Where a request comes from: an address, or what counts as one."""

    name: str
    is_local: bool  # of this computer, and never braked


HERE = Source("this computer", is_local=True)  # over a Unix socket


def source_of(peer: str | None) -> Source:
    """Tell the source of a connection; `peer` is the address as the socket tells it.

    Of IPv6 a whole /64 counts as one, for that is what one household has.
    """
    try:
        address = ip_address((peer or "").partition("%")[0])
    except ValueError:
        return HERE  # a Unix socket has none
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address) or address.is_loopback:
        return Source(str(address), address.is_loopback)
    return Source(str(IPv6Network((address, 64), strict=False)), is_local=False)


class BrakeReport(Struct, frozen=True):
    """The wrong keys since the last report."""

    keys: int
    by_source: list[tuple[str, int]]  # the most first, `MOST_NAMED` at most
    more_sources: int

    @property
    def text(self) -> str:
        """One line, which has no key in it."""
        named = ", ".join(f"{name} ({count})" for name, count in self.by_source)
        more = f" and {self.more_sources} more" if self.more_sources else ""
        return f"wrong keys: {self.keys}, from {named}{more}"


@dataclass(slots=True)
class _Tries:
    level: float  # of wrong keys in the bucket, at `at_s`
    at_s: float
    unsaid: int = 0


class Brake:
    """Counts the wrong keys that one worker is sent. `now_s` is monotonic."""

    def __init__(self) -> None:
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self._reported_s = -math.inf
        self._unsaid = 0

    def __repr__(self) -> str:
        return f"<Brake sources={len(self._tries)}>"

    def __len__(self) -> int:
        """Count the sources that are remembered."""
        return len(self._tries)

    def wrong(self, source: Source, now_s: float) -> float | None:
        """Note a wrong key; returns the seconds to come back in, None where there is no brake."""
        tries = self._tries.get(source.name)
        if tries is None:
            tries = self._tries[source.name] = _Tries(0.0, now_s)
            if len(self._tries) > MOST_ADDRESSES:
                self._tries.popitem(last=False)
        self._tries.move_to_end(source.name)
        self._unsaid += 1
        tries.unsaid += 1
        tries.level = max(0.0, tries.level - (now_s - tries.at_s) / EVERY_S)
        tries.at_s = now_s
        if source.is_local or tries.level + 1 <= FREE:
            tries.level = min(tries.level + 1, FREE)
            return None
        return (tries.level + 1 - FREE) * EVERY_S

    def report(self, now_s: float) -> BrakeReport | None:
        """Sum up what was not reported yet: the first wrong key at once, then once in a minute."""
        if not self._unsaid or now_s - self._reported_s < REPORT_EVERY_S:
            return None
        sources = [(name, tries.unsaid) for name, tries in self._tries.items() if tries.unsaid]
        sources.sort(key=lambda each: -each[1])
        report = BrakeReport(self._unsaid, sources[:MOST_NAMED], max(0, len(sources) - MOST_NAMED))
        self._reported_s, self._unsaid = now_s, 0
        for tries in self._tries.values():
            tries.unsaid = 0
        self._forget(now_s)
        return report

    def _forget(self, now_s: float) -> None:
        """Drop those whose bucket is empty by now, the oldest first."""
        while self._tries:
            tries = next(iter(self._tries.values()))
            if tries.level - (now_s - tries.at_s) / EVERY_S > 0:
                return
            self._tries.popitem(last=False)
