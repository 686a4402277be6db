"""A slow way to a server on loopback, as a process of its own: each request waits before it goes on.

    python -m scripts.bench_scale_slow LISTEN_PORT SERVER_PORT DELAY_MS

It does not read HTTP: a request begins with the first bytes that a client sends after the server's last
answer. One thread passes on some thousand requests a second, and spends its processor time apart from all
others.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

from scripts.local_processes import LOOPBACK, Server
from scripts.local_servers import S3Server
from scripts.local_service import ROOT

CHUNK_BYTES = 65_536
PROBE_TIMEOUT_S = 5.0


class SlowWay(Server):
    """Such a process before an S3 server; as a context it listens at `endpoint`."""

    name = "slow way"

    def __init__(self, folder: Path, *, server: S3Server, delay_ms: int) -> None:
        super().__init__(folder)
        self._server = server
        self._delay_ms = delay_ms

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{LOOPBACK}:{self.port}"

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def _command(self) -> list[str]:
        numbers = (self.port, self._server.port, self._delay_ms)
        return [sys.executable, "-m", "scripts.bench_scale_slow", *map(str, numbers)]

    def _probe(self) -> None:
        socket.create_connection((LOOPBACK, self.port), timeout=PROBE_TIMEOUT_S).close()


class _Way:
    """One connection through."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._is_answered = True

    async def there(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await client.read(CHUNK_BYTES):
            if self._is_answered:
                self._is_answered = False
                await asyncio.sleep(self._delay_s)
            server.write(data)
            await server.drain()
        server.close()

    async def back(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await server.read(CHUNK_BYTES):
            self._is_answered = True
            client.write(data)
            await client.drain()
        client.close()


async def _listen(port: int, server_port: int, delay_s: float) -> None:
    async def pass_on(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(OSError), closing(to_client):
            server, to_server = await asyncio.open_connection(LOOPBACK, server_port)
            way = _Way(delay_s)
            both = (way.there(client, to_server), way.back(server, to_client))
            await asyncio.gather(*both, return_exceptions=True)  # clients hang up as they like

    listener = await asyncio.start_server(pass_on, LOOPBACK, port, backlog=1024)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    listen, to, delay_ms = map(int, sys.argv[1:4])
    with suppress(KeyboardInterrupt):
        asyncio.run(_listen(listen, to, delay_ms / 1000))
