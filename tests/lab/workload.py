"""What clients do at the source while everything around them fails, and a history of it."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import minio
import urllib3
from minio.commonconfig import CopySource, Tags

MIB = 1024 * 1024
CLIENT_TIMEOUT_S = 10.0
PLAIN_KEYS = 240
ODD_KEYS = (
    *(
        "with space",
        "plus+plus",
        "per%cent %2F",
        "a=b&c=d",
        "quote'\"",
        "semi;colon",
        "käse/größe.txt",
        "日本語",
    ),
    *(
        "emoji 🙂",
        "brackets[1]{2}(3)",
        "hash#tag",
        "at@home",
        "tilde~",
        "back`tick",
        "pipe|less<more>",
        "star*?",
    ),
    *(
        "comma,dot.",
        "...dots",
        "-dash",
        "_under",
        "dollar$HOME",
        "UPPER/lower",
        "e\u0301 combined",
        "x" * 200,
    ),
)
VERBS = {"put": 60, "multipart": 3, "tag": 9, "rename": 8, "delete": 12, "empty": 3, "wait": 5}


@dataclass(frozen=True)
class Done:
    """One thing that a client did: `ended_at` is when it had the answer, in seconds since 1970.

    `etag` is what the source told; `error` is "" where the client knows that it was done.
    """

    began_at: float
    ended_at: float
    verb: str
    key: str
    size: int = 0
    etag: str = ""
    error: str = ""

    @property
    def was_refused(self) -> bool:
        """Whether the source said that there is nothing to do it to."""
        return self.error == "NoSuchKey"

    @property
    def is_unknown(self) -> bool:
        """Whether the client never learned if it was done."""
        return bool(self.error) and not self.was_refused

    def facts(self) -> dict[str, Any]:
        """As a line of the history."""
        return {name: value for name, value in asdict(self).items() if value not in ("", 0)}


class Workload:
    """Several clients that put, overwrite, tag, rename and delete; as a context, from its beginning to its
    end. What each does is decided by the seed; when, by `per_s` and by how long the source takes.
    """

    def __init__(
        self,
        connect: Callable[[urllib3.PoolManager], minio.Minio],
        bucket: str,
        *,
        seed: int,
        clients: int,
        per_s: float,
    ) -> None:
        self._connect, self._bucket = connect, bucket
        self._pause_s = clients / per_s
        self._is_over = threading.Event()
        self._clients = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} client {number}"),))
            for number in range(clients)
        ]
        self.history: list[Done] = []
        self.bytes_put = 0

    def __enter__(self) -> Workload:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for client in self._clients:
            client.join()

    def _run(self, chance: random.Random) -> None:
        with urllib3.PoolManager(retries=False, timeout=CLIENT_TIMEOUT_S) as pool:
            client = _Client(self._connect(pool), self._bucket, chance)
            while not self._is_over.wait(chance.expovariate(1 / self._pause_s)):
                verb = chance.choices(list(VERBS), list(VERBS.values()))[0]
                for done in client.do(verb):
                    self.history.append(done)
                    self.bytes_put += done.size

    @property
    def unknown(self) -> int:
        """Of how many the client never learned whether they were done."""
        return sum(done.is_unknown for done in self.history)


class _Client:
    def __init__(self, client: minio.Minio, bucket: str, chance: random.Random) -> None:
        self._client, self._bucket, self._chance = client, bucket, chance

    def do(self, verb: str) -> list[Done]:
        """Does one thing, which may be two requests."""
        key = self._key()
        match verb:
            case "put":
                return [self._put(key, self._size())]
            case "empty":
                return [self._put(key, 0)]
            case "multipart":
                return [self._put(key, self._chance.randrange(10 * MIB, 24 * MIB), part_size=5 * MIB)]
            case "tag":
                tags = Tags.new_object_tags()
                tags["seen"] = f"{self._chance.random():.6f}"
                return [self._ask("tag", key, lambda: self._client.set_object_tags(
                    bucket_name=self._bucket, object_name=key, tags=tags))]  # fmt: skip
            case "rename":
                return self._rename(key, self._key())
            case "delete":
                return [self._delete(key)]
            case _:
                return []

    def _key(self) -> str:
        if self._chance.random() < 0.12:
            return f"odd/{self._chance.choice(ODD_KEYS)}"
        number = self._chance.randrange(PLAIN_KEYS)
        return f"plain/{number % 7}/{number:04}"

    def _size(self) -> int:
        """Mostly small; one in forty of some MiB, one in three hundred of 64 MiB."""
        share = self._chance.random()
        if share < 1 / 300:
            return 64 * MIB
        if share < 1 / 40:
            return self._chance.randrange(1 * MIB, 20 * MIB)
        return self._chance.randrange(1, 65_536)

    def _put(self, key: str, size: int, *, part_size: int = 0) -> Done:
        block = self._chance.randbytes(min(size, 65_536))
        body = (block * (size // len(block) + 1))[:size] if block else b""
        body = f"{self._chance.random():.16f}".encode()[:size] + body[18:]  # no two bodies are alike
        metadata: dict[str, Any] = {"origin": f"client {self._chance.randrange(1000)}"}
        more: dict[str, Any] = {"part_size": part_size} if part_size else {}
        kind = self._chance.choice(["application/octet-stream", "text/plain; charset=utf-8", "image/png"])
        return self._ask("put", key, lambda: self._client.put_object(
            bucket_name=self._bucket, object_name=key, data=io.BytesIO(body), length=size, content_type=kind,
            metadata=metadata, **more), size=len(body))  # fmt: skip

    def _delete(self, key: str) -> Done:
        return self._ask(
            "delete", key, lambda: self._client.remove_object(bucket_name=self._bucket, object_name=key)
        )

    def _rename(self, key: str, to: str) -> list[Done]:
        if key == to:
            return []
        source = CopySource(bucket_name=self._bucket, object_name=key)
        copied = self._ask("copy", to, lambda: self._client.copy_object(
            bucket_name=self._bucket, object_name=to, source=source))  # fmt: skip
        return [copied] if copied.error else [copied, self._delete(key)]

    def _ask(self, verb: str, key: str, request: Callable[[], Any], *, size: int = 0) -> Done:
        began_at = time.time()
        etag = error = ""
        try:
            answer = request()
            etag = (getattr(answer, "etag", None) or "").strip('"')
        except minio.S3Error as refused:
            error = str(refused.code)
        except (minio.error.MinioException, urllib3.exceptions.HTTPError, OSError) as unknown:
            error = type(unknown).__name__
        return Done(began_at, time.time(), verb, key, size=0 if error else size, etag=etag, error=error)
