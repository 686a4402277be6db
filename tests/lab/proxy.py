"""A loopback proxy that streams, and does to requests what networks, stores and their front ends do.

    with LabProxy(server.endpoint, chance=random.Random(seed)) as proxy:
        proxy.begin(Fault(Kind.RESET_AFTER, share=0.3))
        ...  # clients sign for `proxy.endpoint`; heads and bodies are passed on byte for byte
        proxy.end()
        assert proxy.struck[Kind.RESET_AFTER] > 0

tests/proxy.py does planned things to single requests and holds their bodies in memory; this one strikes by
chance, goes on for hours, and holds a few pieces of each body.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Self
from urllib.parse import urlsplit

from scripts.local_processes import LOOPBACK, free_port
from tests.lab.connection import POLL_S, Connection, Reset
from tests.lab.kinds import Fault, Kind
from tests.lab.messages import HEAD_MAX_BYTES, Hangup, Peer

__all__ = ["Fault", "Kind", "LabProxy"]

CALL_BOUND_S = 30.0


class LabProxy:
    """Stands before the server at this URL while it runs; as a context it starts and stops.

    Thread-safe. `struck` counts the requests that met a fault, when they meet it. Of REFUSED it counts how
    often the port was closed: the kernel refuses, and nobody sees the requests.
    """

    def __init__(self, server: str, *, chance: random.Random, name: str = "", port: int = 0) -> None:
        where = urlsplit(server)
        self.server = (where.hostname or LOOPBACK, where.port or 80)
        self.name = name
        self.port = port or free_port()
        self.endpoint = f"http://{LOOPBACK}:{self.port}"
        self.struck: Counter[Kind] = Counter()
        self.requests = 0
        self.bytes_passed = 0
        self.chance = chance
        self.faults: tuple[Fault, ...] = ()
        self._lock = threading.Lock()
        self._connections: set[asyncio.Task[None]] = set()
        self._clients: set[Peer] = set()
        self._listener: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, fault: Fault) -> None:
        """From now on it strikes. A request meets one fault at most."""
        with self._lock:
            self.faults = (*self.faults, fault)
            self._call(self._heed())

    def end(self, fault: Fault | None = None) -> None:
        """It strikes no more; None ends all. Those that have ended may be ended again."""
        with self._lock:
            left = list(self.faults) if fault else []
            with contextlib.suppress(ValueError):
                left.remove(fault)  # type: ignore[arg-type]
            self.faults = tuple(left)
            self._call(self._heed())

    def start(self) -> Self:
        """Listens. Raises: OSError if somebody else does."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"lab-proxy-{self.name}", daemon=True
        )
        self._thread.start()
        try:
            self._call(self._heed())
        except OSError:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Closes the port and all connections. Safe to repeat."""
        with self._lock:
            if self._loop is None:
                return
            self._call(self._end_all())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_BOUND_S)
            self._loop.close()
            self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ── in the loop's thread ─────────────────────────────────────────────────────────────────────────

    def fault_for(self, operation: str, *, has_body: bool) -> Fault | None:
        """Drawn anew for each request."""
        candidates = [each for each in self.faults if each.concerns(operation, has_body=has_body)]
        self.chance.shuffle(candidates)
        return next((each for each in candidates if self.chance.random() < each.share), None)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        if self._loop is None:
            work.close()
        else:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_BOUND_S)

    async def _heed(self) -> None:
        """The port is open unless a fault closes it."""
        is_refused = any(fault.kind is Kind.REFUSED for fault in self.faults)
        if is_refused and self._listener:
            self._close_port()
            self.struck[Kind.REFUSED] += 1
        elif not is_refused and not self._listener:
            self._listener = await asyncio.start_server(
                self._serve, LOOPBACK, self.port, limit=HEAD_MAX_BYTES, backlog=1024
            )

    def _close_port(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None
        for client in self._clients:
            client.reset()

    async def _end_all(self) -> None:
        self._close_port()
        await asyncio.sleep(0)  # those accepted just now have begun
        tasks = set(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.sleep(POLL_S)  # transports close a turn later

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Peer(reader, writer)
        task = asyncio.current_task()
        assert task
        self._clients.add(client)
        self._connections.add(task)
        connection = Connection(self, client)
        try:
            while await connection.serve_one():
                pass
        except Reset:
            client.reset()
        except (Hangup, OSError, ValueError, asyncio.CancelledError):
            pass  # clients and servers leave as they like, and stop() cancels
        finally:
            self._clients.discard(client)
            self._connections.discard(task)
            client.close()
            connection.leave_server()
