"""DATABASE_URL as providers hand it out, and errors that can be shown."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from webhook.database import connect, parse_url, translated_errors
from webhook.errors import LedgerUnavailable, SettingsError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h:5433/db", {"host": "h", "port": 5433, "user": "u", "password": "p"}),
        ("postgresql://u:p@h/db?sslmode=require", {"host": "h", "sslmode": "require", "user": "u"}),
        ("postgresql+psycopg2://u:%40@h/db", {"host": "h", "password": "@"}),
        ("postgres://u:p@%2Frun%2Fpg/db", {"host": "/run/pg", "user": "u", "password": "p"}),
        ("postgres://u:p@%2frun%2fpg/db", {"host": "/run/pg", "user": "u"}),
        ("postgres://u@%2Frun%2Fpg:5433/db", {"host": "/run/pg", "port": 5433}),
        ("postgresql:///db?host=/run/pg", {"host": "/run/pg"}),
    ],
)
def test_postgresql_is_found_where_the_url_says(url: str, expected: dict[str, object]) -> None:
    parsed = parse_url(url)
    assert parsed.drivername == "postgresql+psycopg"
    _, arguments = PGDialect_psycopg().create_connect_args(parsed)
    assert arguments["dbname"] == "db"
    assert {name: arguments.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "path"), [("sqlite:///data/a.db", "data/a.db"), ("sqlite:////data/a.db", "/data/a.db")]
)
def test_sqlite_is_a_file(url: str, path: str) -> None:
    assert (parse_url(url).database, parse_url(url).drivername) == (path, "sqlite")


@pytest.mark.parametrize(
    "url",
    [
        *("", "nonsense", "/data/a.db", "sqlite://", "sqlite:///:memory:", "mysql://u:s3cr3t@h/db"),
        *("sqlite:///a.db?timeout=abc", "sqlite:///a.db?foo=1"),
        *("postgres://u:s3cr3t@h:port/db", "postgres://u:s3cr3t@[::1/db"),
        *("postgres://u:p@s3cr3t@h/db", "postgresql://u@server:p@s3cr3t@h/db"),
    ],
)
def test_other_urls_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL") as caught:
        parse_url(url)
    assert "s3cr3t" not in str(caught.value)


def test_an_unreachable_server_is_reported_without_the_password() -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        connect("postgres://user:s3cr3t@127.0.0.1:9/db")
    error: BaseException | None = caught.value
    while error:
        assert "s3cr3t" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "error",
    [
        OSError(),
        ConnectionResetError(),
        OSError(28, "No space left"),
        sa.exc.TimeoutError("pool"),
        OSError("\n"),
    ],
    ids=repr,
)
def test_any_failure_of_the_database_becomes_one_of_ours(error: Exception) -> None:
    with pytest.raises(LedgerUnavailable, match=type(error).__name__), translated_errors():
        raise error


def test_mistakes_of_our_own_are_not_blamed_on_the_database() -> None:
    with pytest.raises(KeyError), translated_errors():
        raise KeyError
