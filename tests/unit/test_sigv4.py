"""Requests are signed as Amazon documents it, and as botocore signs them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as some

from webhook import sigv4
from webhook.sigv4 import Signer

HOST = "store.example:9000"
KEYS = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
MIDNIGHT = datetime(2013, 5, 25, tzinfo=UTC).timestamp()

texts = some.text(some.characters(exclude_categories=["Cs"]), max_size=30)
values = some.text(some.sampled_from("ab =;,/\"'~%" + "  \t"), max_size=30)
visible = some.text(some.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
names = some.from_regex(r"(x-amz-meta-|content-|if-|range)[a-z0-9_.-]{0,8}", fullmatch=True)
moments = some.integers(0, 2**33).map(lambda at: datetime.fromtimestamp(at, UTC))


def signer(**changes: str) -> Signer:
    return Signer(**{**KEYS, "region": "us-east-1", "host": HOST, **changes})


def by_botocore(
    method: str, path: str, query: list[tuple[str, str]], headers: dict[str, str], *, at: datetime
) -> str:
    """The Authorization header that botocore makes, told to leave the payload out."""
    request = AWSRequest(method, f"https://{HOST}{path}", headers=headers, params=query)
    request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
    auth = S3SigV4Auth(Credentials(KEYS["access_key"], KEYS["secret_key"]), "s3", "us-east-1")
    with patch("botocore.auth.get_current_datetime", return_value=at):
        auth.add_auth(request)
    return str(request.headers["Authorization"])


@given(
    method=some.sampled_from(["GET", "HEAD", "PUT", "POST"]),
    key=texts,
    query=some.lists(some.tuples(texts.filter(bool), texts), max_size=4),
    headers=some.dictionaries(names, values | visible, max_size=5),
    at=moments,
)
def test_any_request_gets_the_signature_that_botocore_gives_it(
    method: str, key: str, query: list[tuple[str, str]], headers: dict[str, str], at: datetime
) -> None:
    path = f"/bucket/{quote(key, safe='/~')}"
    signed = signer().sign(method, path, query, headers, at=at.timestamp())[1]
    assert signed["authorization"] == by_botocore(method, path, query, headers, at=at)
    assert signed.items() >= headers.items()


@given(query=some.lists(some.tuples(texts.filter(bool), texts), max_size=4))
def test_the_query_is_sent_in_the_form_that_was_signed(query: list[tuple[str, str]]) -> None:
    encoded, signed = signer().sign("GET", "/bucket", query, {}, at=0)
    sent = [tuple(pair.split("=")) for pair in encoded.split("&") if pair]
    assert sent == sorted((quote(name, safe=""), quote(value, safe="")) for name, value in query)
    assert signed["authorization"] == by_botocore(
        "GET", "/bucket", query, {}, at=datetime.fromtimestamp(0, UTC)
    )


PUBLISHED = {
    "an object": (
        ("GET", "/test.txt", [], {"range": "bytes=0-9"}, b""),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "an object put": (
        (
            *("PUT", "/test%24file.text", []),
            {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            b"Welcome to Amazon S3.",
        ),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "a query without a value": (
        ("GET", "/", [("lifecycle", "")], {}, b""),
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "a list": (
        ("GET", "/", [("prefix", "J"), ("max-keys", "2")], {}, b""),
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_amazon_s_published_examples_come_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon S3 API Reference, "Examples: Signature Calculations"; there the payload is signed too."""
    (method, path, query, headers, payload), expected = PUBLISHED[name]
    monkeypatch.setattr(sigv4, "UNSIGNED", hashlib.sha256(payload).hexdigest())
    by = signer(host="examplebucket.s3.amazonaws.com")
    signed = by.sign(method, path, query, headers, at=MIDNIGHT - 86_400)[1]
    assert signed["authorization"].rpartition("Signature=")[2] == expected


def test_the_key_of_the_day_changes_at_midnight_utc() -> None:
    kept = signer()
    for at in (MIDNIGHT - 1, MIDNIGHT, MIDNIGHT - 0.001, MIDNIGHT + 86_399.999, MIDNIGHT + 86_400):
        moment = datetime.fromtimestamp(at, UTC)
        signed = kept.sign("GET", "/bucket/key", [], {}, at=at)[1]
        assert signed["authorization"] == by_botocore("GET", "/bucket/key", [], {}, at=moment)
        assert f"/{moment:%Y%m%d}/" in signed["authorization"]


def test_no_secret_is_printed_and_none_is_sent() -> None:
    by = signer()
    sent = by.sign("GET", "/bucket/key", [], {}, at=0)
    assert KEYS["secret_key"] not in f"{by!r} {by} {sent}"
