"""Where an answer may come from, in which order, and which target is asked next.

The targets of an alias stand on levels. Between levels there is failover only: what waits for a
busy target never goes to the next level, neither meanwhile nor when it has waited for too long, for
that may be another owner's computer. The targets of one level are equals, and the first with a free
slot is asked.

A target that is set aside for its failures is passed by as long as another one is left. One that
said when to come again is not asked before.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from tidegate.core.settings import Limits
from tidegate.gateway.upstreams.pool import UpstreamPool


class Target(NamedTuple):
    """One place where an answer may come from, and the limits that hold there."""

    pool: UpstreamPool
    model: str
    limits: Limits
    level: int = 0
    names_ours: bool = False  # the model's name is the config's; else the client chose it

    def may_be_asked(self, now_s: float) -> bool:
        """Tell whether nothing speaks against it."""
        return self.pool.health.may_ask(self.model, now_s)

    def held_s(self, now_s: float) -> float:
        """Tell for how much longer it wants to be left alone."""
        return self.pool.health.held_s(self.model, now_s)


class TargetRoute:
    """The targets of one run that have not been tried."""

    __slots__ = ("_left",)

    def __init__(self, targets: list[Target]) -> None:
        self._left = list(targets)

    def __repr__(self) -> str:
        return f"<Route {[f'{each.pool.name}/{each.model}' for each in self._left]}>"

    def choose(self, now_s: float) -> list[Target]:
        """Choose the equals to be asked next, the preferred one first; empty when there is none.

        If every target is set aside, it is the one whose time comes first.
        """
        for _, level in groupby(self._left, key=lambda each: each.level):
            if equals := [each for each in level if each.may_be_asked(now_s)]:
                return equals
        rest = [each for each in self._left if not each.held_s(now_s)]
        return [min(rest, key=lambda each: each.pool.health.due_s(each.model))] if rest else []

    def has_more(self, now_s: float) -> bool:
        """Tell whether there is still a target that would be asked."""
        return any(not each.held_s(now_s) for each in self._left)

    def first_held(self, now_s: float) -> Target | None:
        """Find the target that wants to be left alone for the shortest time, of those that do."""
        held = [each for each in self._left if each.held_s(now_s)]
        return min(held, key=lambda each: each.held_s(now_s), default=None)

    def remove(self, *tried: Target) -> None:
        """Remove these: they are not asked again."""
        self._left = [each for each in self._left if each not in tried]
