"""A complete environment, and logging left as it was found."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture
def environ() -> dict[str, str]:
    """What must be set, and nothing more. Every secret in these tests holds the word "s3cr3t"."""
    return {
        "MINIO_ENDPOINT": "http://127.0.0.1:9",
        "MINIO_ACCESS_KEY": "minio-key-s3cr3t",
        "MINIO_SECRET_KEY": "minio-secret-s3cr3t",
        "MINIO_BUCKET": "source-bucket",
        "FILEBASE_ENDPOINT": "https://127.0.0.1:9",
        "FILEBASE_ACCESS_KEY": "filebase-key-s3cr3t",
        "FILEBASE_SECRET_KEY": "filebase-secret-s3cr3t",
        "FILEBASE_BUCKET": "target-bucket",
    }


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
