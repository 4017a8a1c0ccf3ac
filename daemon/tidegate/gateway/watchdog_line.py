"""The worker's end of the channel to the watchdog; when it breaks, the worker leaves at once."""

from __future__ import annotations

import asyncio
import logging
import os

from tidegate.core.decoding import Undecodable
from tidegate.core.protocol.lines import ChannelError, LineSplitter
from tidegate.core.protocol.worker import Message, decode_from_watchdog, encode
from tidegate.logs import handler as log_lines

log = logging.getLogger("tidegate.worker")

LAST_WORDS_S = 0.2  # for the log, when it has to leave at once
MAX_UNSENT_BYTES = 8 * 1024 * 1024  # a watchdog that reads nothing for this long is gone


class WatchdogLine(asyncio.Protocol):
    """Puts the watchdog's messages into `inbox`, and sends the worker's."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._splitter = LineSplitter()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for line in self._splitter.feed(data):
                self.inbox.put_nowait(decode_from_watchdog(line))
        except (ChannelError, Undecodable) as error:
            log.error("the watchdog's message cannot be read: %s", error)
            _leave()

    def connection_lost(self, error: Exception | None) -> None:
        log.error("the watchdog is gone; leaving")
        _leave()

    def send(self, message: Message) -> None:
        """Queue a message; a watchdog that has stopped reading does not hold up the loop."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("the watchdog does not read; leaving")
            _leave()
        self._transport.write(encode(message))


def _leave() -> None:
    """At once: no watchdog is left to tell, and streams cannot be saved."""
    log_lines.settle(LAST_WORDS_S)
    os._exit(0)
