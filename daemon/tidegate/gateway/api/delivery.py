"""A run's answer on its way to the client that asked for it, whatever the format."""

from __future__ import annotations

from tidegate.core.formats.framing import RAW
from tidegate.core.runs.window import START
from tidegate.gateway import web
from tidegate.gateway.api.heads import answer_head, failure, raw_head, stream_head
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import RawSubscriber, StreamSubscriber, Subscriber
from tidegate.gateway.server.writer import SLICE_BYTES, AlreadySent, ResponseWriter
from tidegate.gateway.upstreams.reply import Answer


class Delivery:
    """A run's answer on its way to the client that asked for it."""

    __slots__ = ("_client", "_gateway", "_relay", "_subscriber")

    def __init__(
        self, gateway: Gateway, relay: Relay, client: ResponseWriter, *, streams: bool
    ) -> None:
        run = relay.run
        self._gateway = gateway
        self._relay = relay
        self._client = client
        self._subscriber: Subscriber
        if streams:
            head = stream_head(
                run.id,
                run.format.framing,
                http10=client.http10,
                closes=client.closes,
                fields=client.fields,
            )
            self._subscriber = StreamSubscriber(run, client, head)
        elif run.format.framing is RAW:
            self._subscriber = RawSubscriber(run, client, lambda: raw_head(relay, client))
        else:
            self._subscriber = Subscriber(run, START, client)

    def begin(self) -> None:
        """Attach the client."""
        self._relay.attach(self._subscriber)

    async def finish(self) -> web.StreamResponse:
        """Send the answer: as it grows, or in one piece where nothing of it could be streamed."""
        relay, subscriber = self._relay, self._subscriber
        if isinstance(subscriber, StreamSubscriber):
            await subscriber.serve()
            if subscriber.is_committed:
                return AlreadySent(close=self._client.closes)
        else:
            while not relay.run.is_over:
                await subscriber.wait()
        return await self._write(relay.answer or failure(relay))

    def end(self) -> None:
        """Detach the client, whatever became of it."""
        self._gateway.registry.detach(self._relay, self._subscriber)

    async def _write(self, answer: Answer) -> web.StreamResponse:
        """Write a whole answer, and wait until it has been read."""
        gateway, relay, client = self._gateway, self._relay, self._client
        subscriber = self._subscriber
        relay.answer = None
        body = memoryview(answer.body)
        length = ("Content-Length", str(len(body)))
        answer = answer._replace(headers=(length, *answer.headers))
        head = answer_head(relay.run.id, answer, closes=client.closes, fields=client.fields)
        first = body[:SLICE_BYTES]
        client.kept_bytes = (
            len(body) if len(body) > len(first) else 0
        )  # else it is in what is written
        subscriber.outbound_bytes = client.write(b"".join((head, first)))
        if subscriber.outbound_bytes or client.kept_bytes:
            gateway.registry.look_soon(subscriber, subscriber.check(gateway.loop.time()))
            relay.count_outbound()
            for at in range(SLICE_BYTES, len(body), SLICE_BYTES):
                await client.drained()
                client.write(body[at : at + SLICE_BYTES])
            await client.flushed()
            client.kept_bytes = subscriber.outbound_bytes = 0
        return AlreadySent(close=client.closes)
