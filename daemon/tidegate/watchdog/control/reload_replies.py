"""What a client is told of the reload that it asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from tidegate.core.protocol.control import ControlReply
from tidegate.core.protocol.reload import (
    Earlier,
    Reloaded,
    ReloadRefusal,
    ReloadRefused,
    SettingChange,
)
from tidegate.watchdog.control.server import ControlClient, ControlServer


class ReloadReplies:
    """Answer clients, and keep what the file brought before a client asked."""

    def __init__(self, control: ControlServer) -> None:
        self._control = control
        self._untold: tuple[list[SettingChange], float] | None = None  # taken up unasked, and when

    def __repr__(self) -> str:
        return f"<ReloadReplies untold={self._untold is not None}>"

    def done(self, clients: Sequence[ControlClient], result: Reloaded, *, asked: bool) -> None:
        """Answer that the config is in force; `asked`: by a person, if only by a signal."""
        earlier = self._earlier(result.changes, is_told=bool(clients), asked=asked)
        raw = msgspec.Raw(msgspec.json.encode(msgspec.structs.replace(result, earlier=earlier)))
        for client in clients:
            self._control.reply(client, ControlReply(ok=True, result=raw))

    def refuse(self, clients: Sequence[ControlClient], refusal: ReloadRefusal) -> None:
        """Answer why the former config stays in force."""
        raw = msgspec.Raw(msgspec.json.encode(ReloadRefused(refused=refusal.why)))
        for client in clients:
            self._control.reply(client, ControlReply(ok=False, error=refusal.text, result=raw))

    def _earlier(
        self, changes: list[SettingChange], *, is_told: bool, asked: bool
    ) -> Earlier | None:
        """Return what the file brought unasked, once, for the client that then finds no change."""
        untold, now_s = self._untold, time.monotonic()
        if not is_told:
            if changes:
                self._untold = None if asked else (changes, now_s)
            return None
        self._untold = None
        if untold is None or changes:
            return None
        return Earlier(changes=untold[0], ago_s=round(now_s - untold[1], 1))
