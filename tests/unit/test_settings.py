"""The environment is read whole, and complained about whole."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest

from webhook import settings
from webhook.errors import SettingsError
from webhook.settings import MIB, Settings

REQUIRED = [f"{store}_{name}" for store in ("MINIO", "FILEBASE") for name in ("ENDPOINT", "BUCKET")] + [
    f"{store}_{name}_KEY" for store in ("MINIO", "FILEBASE") for name in ("ACCESS", "SECRET")
]


def test_what_is_not_set_has_a_default(environ: dict[str, str]) -> None:
    found = settings.from_environ(environ)
    assert (found.web.port, found.web.webhook_auth_token, found.web.api_token) == (8000, "", "")
    assert (found.worker.threads, found.worker.embedded, found.worker.lease_s) == (16, True, 60)
    assert (found.copy.overwrite, found.copy.whole_max_bytes) == ("changed", 16 * MIB)
    assert (found.target.region, found.database_url) == ("us-east-1", "sqlite:///data/replicator.db")


def test_what_is_set_is_used(environ: dict[str, str]) -> None:
    environ |= {"PORT": " 81 ", "WORKER_EMBEDDED": "No", "OVERWRITE": "NEVER", "MEMORY_BUDGET_MIB": "64"}
    environ |= {"FILEBASE_REGION": "eu", "MINIO_ENDPOINT": "http://minio:9000/", "LOG_FORMAT": "json"}
    found = settings.from_environ(environ)
    assert (found.web.port, found.worker.embedded, found.copy.overwrite) == (81, False, "never")
    assert (found.copy.memory_budget_bytes, found.target.region) == (64 * MIB, "eu")
    assert (found.source.endpoint_url, found.log_format) == ("http://minio:9000", "json")


@pytest.mark.parametrize(("value", "expected"), [(None, ""), ("  ", ""), (" STANDARD_IA ", "STANDARD_IA")])
def test_a_storage_class_is_the_target_s_alone_and_empty_where_none_is_set(
    environ: dict[str, str], value: str | None, expected: str
) -> None:
    given = {} if value is None else {"FILEBASE_STORAGE_CLASS": value}
    found = settings.from_environ(environ | given | {"MINIO_STORAGE_CLASS": "GLACIER"})
    assert (found.target.storage_class, found.source.storage_class) == (expected, "")


@pytest.mark.parametrize("value", [None, "", "  "])
def test_all_missing_variables_are_named_at_once(value: str | None) -> None:
    environ = {} if value is None else dict.fromkeys(REQUIRED, value)
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ)
    assert sorted(caught.value.problems) == sorted(f"{name} is missing" for name in REQUIRED)
    assert all(name in str(caught.value) for name in REQUIRED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PORT", value) for value in ("0", "65536", "-1", "8e3", "eight", "8.0", "9" * 5000)),
        *(("WORKER_THREADS", "0"), ("LEASE_S", "1"), ("MAX_ATTEMPTS", "0"), ("DRAIN_S", "-1")),
        *(("MEMORY_BUDGET_MIB", "31"), ("WHOLE_OBJECT_MAX_MIB", "4"), ("WHOLE_OBJECT_MAX_MIB", "129")),
        *(("WORKER_EMBEDDED", "maybe"), ("OVERWRITE", "always"), ("LOG_FORMAT", "xml")),
        *(("MINIO_ENDPOINT", value) for value in ("minio:9000", "ftp://minio", "http://", "http://h/path")),
        *(
            ("MINIO_ENDPOINT", value)
            for value in ("http://h:0", "http://h:99999", "http://h?x=1", "http://[")
        ),
    ],
)
def test_a_value_out_of_range_is_one_problem_that_names_its_variable(
    environ: dict[str, str], name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {name: value})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(name)


def test_problems_of_all_kinds_are_reported_together(environ: dict[str, str]) -> None:
    del environ["MINIO_BUCKET"]
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {"PORT": "x", "OVERWRITE": "y", "FILEBASE_ENDPOINT": "z"})
    named = {problem.split()[0] for problem in caught.value.problems}
    assert named == {"MINIO_BUCKET", "PORT", "OVERWRITE", "FILEBASE_ENDPOINT"}


@pytest.mark.parametrize("endpoint", ["http://minio:9000", "http://minio:9000/"])
def test_a_source_that_is_its_own_target_is_refused(environ: dict[str, str], endpoint: str) -> None:
    environ |= {"MINIO_ENDPOINT": "http://minio:9000", "FILEBASE_ENDPOINT": endpoint}
    environ |= {"MINIO_BUCKET": "b", "FILEBASE_BUCKET": "b"}
    with pytest.raises(SettingsError, match="source itself"):
        settings.from_environ(environ)
    settings.from_environ(environ | {"FILEBASE_BUCKET": "another"})


@pytest.mark.parametrize("userinfo", ["user:s3cr3t@", "s3cr3t@", ":s3cr3t@"])
def test_credentials_in_an_endpoint_are_refused_and_not_repeated(
    environ: dict[str, str], userinfo: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {"MINIO_ENDPOINT": f"http://{userinfo}host"})
    assert "s3cr3t" not in str(caught.value)


def test_no_secret_is_printed(environ: dict[str, str]) -> None:
    environ |= {"WEBHOOK_AUTH_TOKEN": "hook-s3cr3t", "API_TOKEN": "api-s3cr3t"}
    environ |= {"DATABASE_URL": "postgresql://user:s3cr3t@db/ledger"}
    found = settings.from_environ(environ)
    assert "s3cr3t" not in f"{found!r} {found} {found.source!r} {found.target} {found.web!r}"
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {"PORT": "x", "FILEBASE_ENDPOINT": "nonsense"})
    assert "s3cr3t" not in f"{caught.value} {caught.value!r} {caught.value.hint}"


def test_the_environment_wins_over_the_file(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{name}={value}" for name, value in environ.items()]
    (tmp_path / ".env").write_text("\n".join([*lines, "PORT=1", "OVERWRITE=never", "NOTHING", "# no"]))
    for name in (*environ, "OVERWRITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORT", "2")
    found: Settings = settings.load(tmp_path)
    assert (found.web.port, found.copy.overwrite, found.source.bucket) == (2, "never", "source-bucket")
    monkeypatch.chdir(tmp_path)
    assert settings.load() == found


def test_the_certificates_are_the_usual_ones_or_those_that_ssl_cert_file_names(
    environ: dict[str, str],
) -> None:
    usual = settings.from_environ(environ)
    assert {usual.source.ca_file, usual.target.ca_file} == {certifi.where()}
    named = settings.from_environ({**environ, "SSL_CERT_FILE": "/own.pem"})
    assert {named.source.ca_file, named.target.ca_file} == {"/own.pem"}
