"""HTTP/1.1 as it is on the wire (RFC 9112): heads whose bytes are kept, and bodies piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

PIECE_BYTES = 65_536
HEAD_MAX_BYTES = 131_072
CHUNKED = -1
"""A body's length: its chunks say."""
UNTIL_CLOSED = -2
"""A body's length: all that comes until the connection is closed."""


class Hangup(Exception):
    """The other side closed the connection, or speaks something else."""


@dataclass(frozen=True)
class Head:
    """The first line in its three parts, the fields by their names in small letters, and the bytes."""

    raw: bytes
    first: tuple[str, str, str]
    fields: dict[str, str]

    @property
    def request_length(self) -> int:
        """Of the request's body in bytes, or CHUNKED."""
        return self._length(otherwise=0)

    def answer_length(self, method: str) -> int:
        """Of the answer's body in bytes, or CHUNKED or UNTIL_CLOSED."""
        if method == "HEAD" or self.status in (204, 304) or self.status < 200:
            return 0
        return self._length(otherwise=UNTIL_CLOSED)

    def _length(self, *, otherwise: int) -> int:
        if "chunked" in self.fields.get("transfer-encoding", "").lower():
            return CHUNKED
        return int(self.fields.get("content-length", otherwise))

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first[1])

    @property
    def is_last(self) -> bool:
        """Whether its sender closes the connection afterwards."""
        said = self.fields.get("connection", "").lower()
        return "close" in said or ("HTTP/1.0" in self.first and "keep-alive" not in said)


def parsed(raw: bytes) -> Head:
    """Raises: Hangup if that is no head."""
    lines = raw.decode("latin-1").strip("\r\n").split("\r\n")
    first = lines[0].split(" ", 2)
    if len(first) == 2:  # an answer may have no reason
        first.append("")
    fields = [line.partition(":") for line in lines[1:]]
    if len(first) != 3 or not all(colon for _, colon, _ in fields):
        raise Hangup("no HTTP/1.1")
    return Head(
        raw, (first[0], first[1], first[2]), {name.lower(): value.strip() for name, _, value in fields}
    )


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.sent_bytes = 0

    @property
    def has_left(self) -> bool:
        """Whether nothing more will come."""
        return self.reader.at_eof() or self.writer.is_closing()

    async def head(self) -> Head:
        """The next one. Raises: Hangup."""
        return parsed(await self._until(b"\r\n\r\n"))

    async def pieces(self, length: int) -> AsyncIterator[tuple[bytes, bool]]:
        """All bytes of a body as they are on the wire, and whether they are its data. Raises: Hangup."""
        if length != CHUNKED:
            async for piece in self._data(length):
                yield piece, True
            return
        size = 1
        while size > 0:
            line = await self._until(b"\r\n")
            yield line, False
            size = int(line.split(b";")[0], 16)
            async for piece in self._data(size):
                yield piece, True
            if size > 0:
                yield await self._until(b"\r\n"), False
        while line != b"\r\n":  # fields may follow
            line = await self._until(b"\r\n")
            yield line, False

    async def _data(self, length: int) -> AsyncIterator[bytes]:
        left = length
        while left != 0:
            piece = await self.reader.read(min(left, PIECE_BYTES) if left > 0 else PIECE_BYTES)
            if not piece and length == UNTIL_CLOSED:
                return
            if not piece:
                raise Hangup
            yield piece
            left -= len(piece) if left > 0 else 0

    async def _until(self, end: bytes) -> bytes:
        try:
            return await self.reader.readuntil(end)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Hangup from error

    async def send(self, data: bytes) -> None:
        """As fast as the other side takes it. Raises: OSError."""
        self.writer.write(data)
        self.sent_bytes += len(data)
        await self.writer.drain()

    def close(self) -> None:
        """With a FIN, after what was sent."""
        self.writer.close()

    def reset(self) -> None:
        """With a RST, at once."""
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
