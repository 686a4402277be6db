"""Stores that speak TLS: whose certificate is trusted, and what is said of one that is not."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import minio
import pytest
import trustme
import urllib3

from scripts.local_servers import REGION, SeaweedFS
from tests.integration.conftest import Permit, read_object
from tests.integration.test_stores import BODY, NOTHING, md5
from webhook.errors import SettingsError, StoreUnavailable
from webhook.settings import StoreSettings
from webhook.source import Source
from webhook.target import Target

BUCKET = "behind-tls"


class TLSSeaweedFS(SeaweedFS):
    """SeaweedFS whose S3 API speaks TLS, with a certificate for "localhost" and no other name."""

    authority = trustme.CA()
    ca_path: Path

    @property
    def endpoint(self) -> str:
        return f"https://localhost:{self.port}"

    def client(self, http_client: urllib3.PoolManager | None = None) -> minio.Minio:
        trusting = urllib3.PoolManager(ca_certs=str(self.ca_path), timeout=10, retries=False)
        keys = {"access_key": self.access_key, "secret_key": self.secret_key}
        return minio.Minio(endpoint=f"localhost:{self.port}", region=REGION, http_client=trusting, **keys)

    def _prepare(self) -> None:
        super()._prepare()
        self.ca_path = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca_path))
        certificate = self.authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(self.folder / "certificate.pem"), append=True)

    def _command(self) -> list[str]:
        return [*super()._command(), "-s3.cert.file=certificate.pem", "-s3.key.file=key.pem"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSSeaweedFS]:
    """The server, with a bucket."""
    with TLSSeaweedFS(tmp_path_factory.mktemp("tls")) as started:
        started.client().make_bucket(bucket_name=BUCKET)
        yield started


@pytest.fixture
def stores(server: TLSSeaweedFS) -> Iterator[Callable[..., tuple[Source, Target]]]:
    """The server seen from both sides, as the environment is at the call."""
    opened: list[Source | Target] = []

    def at(host: str = "localhost") -> tuple[Source, Target]:
        settings = StoreSettings(
            endpoint_url=f"https://{host}:{server.port}",
            access_key=server.access_key,
            secret_key=server.secret_key,
            region=REGION,
            ca_file=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        pair = Source(settings), Target(settings)
        opened.extend(pair)
        return pair

    yield at
    for store in opened:
        store.close()


def are_not_asked(source: Source, target: Target, problem: str) -> None:
    """Neither our own request nor one of boto3's gets through; the first says why."""
    calls: list[tuple[str, Callable[[], object]]] = [
        (problem, lambda: source.head(BUCKET, "key")),
        (problem, lambda: source.open(BUCKET, "key")),
        (problem, lambda: target.put(BUCKET, "key", BODY, md5(BODY), NOTHING, permit=Permit())),
        (problem, lambda: target.create_upload(BUCKET, "key", NOTHING, permit=Permit())),
        ("", lambda: target.uploaded_parts(BUCKET, "key", "no-such-upload")),
    ]
    for expected, call in calls:
        with pytest.raises(StoreUnavailable) as raised:
            call()
        assert expected in str(raised.value)
        assert not expected or "SSL_CERT_FILE" in raised.value.hint
        printed = "".join(traceback.format_exception(raised.value))
        assert "minioadmin" not in printed


def test_with_the_authority_named_objects_and_parts_are_written_and_read(
    server: TLSSeaweedFS,
    stores: Callable[..., tuple[Source, Target]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_path))
    source, target = stores()
    target.check(BUCKET)
    target.put(BUCKET, "whole", BODY, md5(BODY), NOTHING, permit=Permit())
    upload, _ = target.create_upload(BUCKET, "parts", NOTHING, permit=Permit())
    part = target.put_part(BUCKET, "parts", upload, 1, BODY, md5(BODY), permit=Permit())
    assert list(target.uploaded_parts(BUCKET, "parts", upload) or ()) == [1]
    target.complete_upload(BUCKET, "parts", upload, [part.etag], permit=Permit())
    for key in ("whole", "parts"):
        assert read_object(source, BUCKET, key) == BODY
    left, _ = target.create_upload(BUCKET, "left", NOTHING, permit=Permit())
    target.abort_upload(BUCKET, "left", left)
    assert target.uploaded_parts(BUCKET, "left", left) is None


def test_an_authority_that_nobody_named_is_not_trusted(
    stores: Callable[..., tuple[Source, Target]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("", ""), ("SSL_CERT_FILE", ""), ("SSL_CERT_FILE", certifi.where())):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        if variable:
            monkeypatch.setenv(variable, value)
        are_not_asked(*stores(), problem="certificate")


def test_a_certificate_for_another_host_is_not_trusted(
    server: TLSSeaweedFS,
    stores: Callable[..., tuple[Source, Target]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_path))
    are_not_asked(*stores("127.0.0.1"), problem="certificate")


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_of_authorities_that_cannot_be_read_is_named(
    stores: Callable[..., tuple[Source, Target]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes | None,
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(SettingsError, match=r"SSL_CERT_FILE names .*authorities\.pem"):
        stores()


def test_a_store_that_speaks_no_tls_is_unavailable(
    seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    keys = {"access_key": seaweed.access_key, "secret_key": seaweed.secret_key, "region": REGION}
    source = Source(StoreSettings(endpoint_url=f"https://127.0.0.1:{seaweed.port}", **keys))
    with pytest.raises(StoreUnavailable, match=r"SSL|TLS"):
        source.head(BUCKET, "key")
    source.close()
