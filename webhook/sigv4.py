"""AWS Signature Version 4 for S3, signed in the Authorization header.

Source: Amazon S3 API Reference, "Authenticating Requests (AWS Signature Version 4)". The payload's SHA-256
is left out (UNSIGNED-PAYLOAD): what was written is proven by its ETag.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"


class Signer:
    """Signs for one pair of keys, region and host. Thread-safe."""

    def __init__(self, *, access_key: str, secret_key: str, region: str, host: str) -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        self._region = region
        self._host = host
        self._key_of_day = ("", b"")

    def sign(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        *,
        at: float,
    ) -> tuple[str, dict[str, str]]:
        """The encoded query, and `headers` with the signature's own added; all of them are signed.

        `path` is encoded already, header names are in lower case and values bytes in Latin-1, `at` is in
        seconds since 1970. Raises: UnicodeEncodeError.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
        day = stamp[:8]
        given = {**headers, "host": self._host, "x-amz-content-sha256": UNSIGNED, "x-amz-date": stamp}
        names = sorted(given)
        signed = ";".join(names)
        pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in query)
        encoded = "&".join(f"{name}={value}" for name, value in pairs)
        lines = [f"{name}:{_trimmed(given[name])}" for name in names]
        request = "\n".join([method, path, encoded, *lines, "", signed, UNSIGNED])
        scope = f"{day}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode("latin-1")).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.digest(self._key(day), text.encode(), "sha256").hex()
        del given["host"]
        given["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return encoded, given

    def _key(self, day: str) -> bytes:
        known_day, key = self._key_of_day
        if known_day != day:
            key = f"AWS4{self._secret_key}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key_of_day = (day, key)
        return key


def _trimmed(value: str) -> str:
    """Without blanks around it, and one for each run of them: ASCII's, no others."""
    return b" ".join(value.encode("latin-1").split()).decode("latin-1")
