"""One client's connection through the proxy, and what befalls its requests."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.lab.kinds import Fault, Kind
from tests.lab.messages import HEAD_MAX_BYTES, UNTIL_CLOSED, Hangup, Head, Peer
from tests.proxy import operation_of

if TYPE_CHECKING:
    from tests.lab.proxy import LabProxy

POLL_S = 0.05
TICK_S = 0.05
"""What is passed slowly goes in pieces, one in this time."""
LINGER_S = 2.0
"""A request whose answer came early may still send its body for so long."""
EVENTS_PATH = "/minio/events"


def named(method: str, target: str) -> str:
    """The operation of a request."""
    if urlsplit(target).path == EVENTS_PATH:
        return "Event"
    try:
        return operation_of(method, target)
    except KeyError:
        return f"{method} object"


class Reset(Exception):
    """The client's connection is to be reset."""


class Connection:
    """A client's connection, one request after the other, and one to the server while it lasts."""

    def __init__(self, proxy: LabProxy, client: Peer) -> None:
        self.proxy, self.client = proxy, client
        self.server: Peer | None = None
        self.fault: Fault | None = None
        self.is_passed = asyncio.Event()

    def leave_server(self) -> None:
        """At once: the server hears of it, whatever it is doing."""
        if self.server:
            self.server.reset()
            self.server = None

    def strikes(self, *kinds: Kind) -> bool:
        """Whether this request meets one of these."""
        return self.fault is not None and self.fault.kind in kinds

    def hit(self) -> None:
        """It has met it."""
        assert self.fault
        self.proxy.struck[self.fault.kind] += 1

    async def serve_one(self) -> bool:
        """Gives whether another one may come. Raises: Reset, Hangup, OSError."""
        request = await self.client.head()
        method, target, _ = request.first
        self.proxy.requests += 1
        self.is_passed.clear()
        operation = named(method, target)
        self.fault = self.proxy.fault_for(operation, has_body=request.request_length != 0)
        return await self._meet(request) and not request.is_last

    async def _meet(self, request: Head) -> bool:
        if self.strikes(Kind.RESET_BEFORE):
            self.hit()
            raise Reset
        if self.fault and (answer := self.fault.answer(request.first[0])):
            await self._take(request)
            self.hit()
            await self._send(self.client, answer)
            return True
        if self.strikes(Kind.HALF_OPEN):
            await self._take(request)
            self.hit()
            await self._while_on(math.inf)
            raise Hangup
        if self.strikes(Kind.DELAY):
            self.hit()
            await self._while_on(self.fault.delay_s if self.fault else 0)
        return await self._forward(request)

    async def _while_on(self, bound_s: float) -> None:
        until = asyncio.get_running_loop().time() + bound_s
        while self._is_on and not self.client.has_left and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(min(POLL_S, bound_s))

    @property
    def _is_on(self) -> bool:
        return self.fault in self.proxy.faults

    async def _take(self, request: Head) -> None:
        """All of its body, for nobody."""
        if "expect" in request.fields:
            await self.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for _ in self.client.pieces(request.request_length):
            pass

    async def _forward(self, request: Head) -> bool:
        """Both ways at once: the answer may come before the request's body is through."""
        if self.strikes(Kind.BANDWIDTH):
            self.hit()
        if self.server is None or self.server.has_left:
            self.leave_server()
            self.server = Peer(*await asyncio.open_connection(*self.proxy.server, limit=HEAD_MAX_BYTES))
        up = asyncio.create_task(self._up(request, self.server))
        down = asyncio.create_task(self._down(request, self.server))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                await up
            return await down and await self._has_passed()
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _has_passed(self) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.is_passed.wait(), LINGER_S)
        return self.is_passed.is_set()

    async def _up(self, request: Head, server: Peer) -> None:
        """The request, then a watch on the client. Only an exception ends it."""
        await self._send_if_heard(server, request.raw)
        length = request.request_length
        await self._pass(
            *(self.client, server, length),
            flips=self.strikes(Kind.FLIP_REQUEST),
            stops=self.strikes(Kind.RESET_DURING),
        )
        self.is_passed.set()
        while not self.client.has_left:
            await asyncio.sleep(POLL_S)
        raise Hangup

    async def _down(self, request: Head, server: Peer) -> bool:
        """The answers on the way, then the one; gives whether both connections can go on."""
        while (answer := await server.head()).status < 200:
            await self._send(self.client, answer.raw)
        length = answer.answer_length(request.first[0])
        if self.strikes(Kind.RESET_DURING):  # its body was none, or all through before the answer
            self.hit()
            raise Reset
        if self.strikes(Kind.DRIP):
            self.hit()
        if self.strikes(Kind.RESET_AFTER) and length == 0:
            self.hit()
            await self._send(self.client, answer.raw[: len(answer.raw) // 2])
            raise Reset
        is_lost = self.strikes(Kind.ANSWER_LOST)
        if not is_lost:
            await self._send(self.client, answer.raw)
        await self._pass(
            *(server, None if is_lost else self.client, length),
            flips=self.strikes(Kind.FLIP_ANSWER),
            stops=self.strikes(Kind.RESET_AFTER, Kind.CUT_SHORT),
        )
        if is_lost:
            self.hit()
            raise Hangup
        return not answer.is_last and length != UNTIL_CLOSED

    async def _pass(self, giver: Peer, taker: Peer | None, length: int, *, flips: bool, stops: bool) -> None:
        """A body. Somewhere in it, of chunks in the first piece, one bit is flipped or all stops."""
        place, passed = None, 0
        async for piece, is_data in giver.pieces(length):
            if is_data and (flips or stops):
                if place is None:
                    place = self.proxy.chance.randrange(length if length > 0 else len(piece))
                here, passed = place - passed, passed + len(piece)
                if 0 <= here < len(piece):
                    piece = await self._struck_at(here, piece, taker, flips=flips)
            if taker:
                await self._send_if_heard(taker, piece)

    async def _struck_at(self, here: int, piece: bytes, taker: Peer | None, *, flips: bool) -> bytes:
        self.hit()
        if flips:
            bit = 1 << self.proxy.chance.randrange(8)
            return piece[:here] + bytes([piece[here] ^ bit]) + piece[here + 1 :]
        if taker:
            await self._send(taker, piece[:here])
        raise Hangup if self.strikes(Kind.CUT_SHORT) else Reset

    async def _send_if_heard(self, taker: Peer, data: bytes) -> None:
        """A server that answered early may hear no more. Whether it died is for `_down` to find."""
        try:
            await self._send(taker, data)
        except OSError:
            if taker is self.client:
                raise

    async def _send(self, taker: Peer, data: bytes) -> None:
        self.proxy.bytes_passed += len(data)
        slow = self.strikes(Kind.BANDWIDTH) or (self.strikes(Kind.DRIP) and taker is self.client)
        while slow and self._is_on and data and self.fault and self.fault.rate:
            size = max(1, round(self.fault.rate * TICK_S))
            await taker.send(data[:size])
            data = data[size:]
            await asyncio.sleep(TICK_S)
        if data:
            await taker.send(data)
