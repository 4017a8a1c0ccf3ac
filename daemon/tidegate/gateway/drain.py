"""The end of a generation: nothing new is accepted, and what is under way has its time."""

from __future__ import annotations

import asyncio
import logging
import time

from tidegate.core.errors import UpstreamError
from tidegate.core.protocol.worker import StartDraining
from tidegate.gateway.gateway import Gateway

log = logging.getLogger("tidegate.worker")

POLL_S = 0.1  # how soon after the last stream it is over
GOODBYE_S = 1.0  # for readers to take their last bytes; the watchdog waits for twice as long
HAND_OVER_AGAIN_S = 1.0  # after a successor that could not be reached
HAND_OVER_LIMIT_S = 35.0  # for the next one to start, when nothing else is left to do


class GatewayDrain:
    """Waits until a gateway has nothing left to do, by the last order that came.

    On a stop idle connections are not waited for; on a recycle they have until their keep-alive
    ends, so that no request finds itself shut out. A recycle may turn into a stop.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.farewell = "cancelled: tidegate is stopping"  # what readers are told in the end
        self._gateway = gateway
        self._order: StartDraining | None = None  # the last one
        self._deadline_s = 0.0  # until when it is waited
        self._hand_over_s = float("-inf")  # not before
        self._unreachable: str | None = None  # which successor that was said of

    def order(self, order: StartDraining) -> bool:
        """Obey this order from now on; whether it is the first."""
        is_first = self._order is None
        self._order, self._deadline_s = order, time.monotonic() + order.limit_s
        return is_first

    @property
    def goodbye_s(self) -> float:
        """How long the last words may take: the rest of the drain, and a part of its margin."""
        return max(0.0, self._deadline_s - time.monotonic()) + GOODBYE_S

    async def until_over(self) -> None:
        """Wait for what is under way, for `limit_s` at most; finished runs are handed over."""
        order, registry = self._last_order, self._gateway.registry
        log.info("draining for a %s: %d runs active", order.reason, registry.active_count)
        quiet_s: float | None = None  # since when only answers to be handed over are left
        while time.monotonic() < self._deadline_s:
            is_recycle = order.reason == "recycle"
            if is_recycle:
                await self._hand_over()
            table = self._gateway.server.table
            connections = table.open_connections if is_recycle else table.busy_connections
            if connections or registry.active_count:
                quiet_s = None
            else:
                now_s = time.monotonic()
                quiet_s = quiet_s or now_s
                kept = registry.finished_count if is_recycle else 0
                if not kept or now_s - quiet_s >= HAND_OVER_LIMIT_S:
                    break
            await asyncio.sleep(POLL_S)
            order = self._last_order
        left = registry.active_count
        log.log(logging.WARNING if left else logging.INFO, "drained, %d runs cut", left)
        if order.reason != "stop":
            self.farewell = f"cancelled: {order.reason}"

    @property
    def _last_order(self) -> StartDraining:
        assert self._order is not None, "there is an order to drain"
        return self._order

    async def _hand_over(self) -> None:
        """Give every finished run to the generation that serves; it then answers for them.

        That may be another one than at first: if it dies, the next update names its follower.
        """
        peer, registry = self._gateway.peer, self._gateway.registry
        if peer is None or time.monotonic() < self._hand_over_s:
            return
        for relay in registry.each_finished():
            if relay.subscribers:
                continue
            try:
                taken = await peer.hand_over(relay.run)
            except UpstreamError as error:
                self._hand_over_s = time.monotonic() + HAND_OVER_AGAIN_S
                if peer.socket_path != self._unreachable:
                    log.warning("finished runs cannot be handed over now: %s", error)
                self._unreachable = peer.socket_path
                return
            if taken:
                registry.handed_over(relay)
