"""Statements made into SQL once, and run on the driver's own cursor, for one row or many.

For a small statement, SQLAlchemy's work on each execution costs several times the database's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPICursor

from webhook import postgresql as pg


class Compiled:
    """Its parameters are the ones without a value of their own."""

    def __init__(self, statement: Any, engine: sa.Engine, *, columns: Sequence[str] | None = None) -> None:
        """`columns`: of an INSERT, what each row has."""
        compiled = statement.compile(engine, column_keys=columns)
        self.sql = str(compiled)
        self._constants = {
            name: bind.value for bind, name in compiled.bind_names.items() if not bind.required
        }

    def run(self, cursor: DBAPICursor, row: Mapping[str, Any] = MappingProxyType({}), /) -> DBAPICursor:
        """Executes it, for a row of parameters."""
        cursor.execute(self.sql, {**self._constants, **row})
        return cursor

    def _run_each(self, cursor: DBAPICursor, rows: Sequence[Mapping[str, Any]]) -> DBAPICursor:
        """Executes it for each row, one after the other.

        For SQLite. To PostgreSQL psycopg would send the rows as a pipeline, after which the server does not
        count how long the transaction is idle: were this process to fall silent then, its locks would stay.
        """
        cursor.executemany(self.sql, [{**self._constants, **row} for row in rows])
        return cursor


class ForEachRow(Compiled):
    """An UPDATE that is made of many rows of parameters, all of different entries.

    Where the engine can, in one statement: PostgreSQL's work for each one, and the driver's, is several times
    that for each row of one.
    """

    def __init__(self, statement: Any, engine: sa.Engine, *, types: Mapping[str, Any]) -> None:
        """`types`: of the parameters that are no texts, by name."""
        self._takes_all = engine.dialect.name == "postgresql"
        if self._takes_all:
            statement = pg.update_from_rows(statement, types=types)
        super().__init__(statement, engine)

    def run(self, cursor: DBAPICursor, *rows: Mapping[str, Any]) -> DBAPICursor:
        """Executes it; the cursor's `rowcount` tells how many rows it changed in all."""
        if not self._takes_all:
            return self._run_each(cursor, rows)
        return super().run(cursor, {pg.ROWS: json.dumps(rows)})


class InsertRows(Compiled):
    """An INSERT … ON CONFLICT of many rows, whose conflicts may also be with each other.

    On PostgreSQL in one statement for all rows of different keys, one after the other for those of the same.
    """

    def __init__(
        self, table: sa.Table, columns: Sequence[str], engine: sa.Engine, complete: Callable[[Any], Any]
    ) -> None:
        """`complete` makes the whole statement of its INSERT."""
        self._takes_all = engine.dialect.name == "postgresql"
        self._key = [column.name for column in table.primary_key]
        insert = insert_or(engine.dialect.name, table)
        if self._takes_all:
            super().__init__(complete(pg.insert_from_rows(insert, table, columns)), engine)
        else:
            super().__init__(complete(insert), engine, columns=columns)

    def run(self, cursor: DBAPICursor, *rows: Mapping[str, Any]) -> DBAPICursor:
        """Executes it; each row finds what those before it have left."""
        if not self._takes_all:
            return self._run_each(cursor, rows)
        for group in self._of_different_keys(rows):
            super().run(cursor, {pg.ROWS: json.dumps(group)})
        return cursor

    def _of_different_keys(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
        groups: list[list[Mapping[str, Any]]] = []
        seen: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            key = tuple(row[name] for name in self._key)
            if seen[key] == len(groups):
                groups.append([])
            groups[seen[key]].append(row)
            seen[key] += 1
        return groups


def insert_or(engine_name: str, table: sa.Table) -> Any:
    """INSERT … ON CONFLICT, which both dialects spell alike and SQLAlchemy keeps apart."""
    return (postgresql if engine_name == "postgresql" else sqlite).insert(table)
