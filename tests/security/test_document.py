"""docs/SECURITY.md names tests that exist, and tells of every route."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.security.conftest import TOKENS
from tests.security.test_tokens import routes
from tests.unit.conftest import MakeClient

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "SECURITY.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 50
    for path, name in named:
        found = {
            each.name
            for each in ast.walk(ast.parse((TESTS / path).read_text()))
            if isinstance(each, ast.FunctionDef)
        }
        assert not name or name in found, f"{path}::{name}"


def test_every_test_of_this_folder_is_named_or_stands_beside_one_that_is() -> None:
    named = set(re.findall(r"security/(test_\w+)\.py", TEXT))
    assert {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {"test_document"} == named


def test_every_route_stands_in_the_table(make_client: MakeClient) -> None:
    table = TEXT.partition("## Who may do what")[2].partition("\n\nA token goes")[0]
    told = re.findall(r"`(?:GET |POST )?(/[\w./-]*)…?`", table)
    for method, path in routes(make_client(**TOKENS).application):
        is_told = any(path == each or (each.endswith("/") and path.startswith(each)) for each in told)
        is_page = not path.startswith(("/v1", "/minio", "/metrics", "/healthz", "/readyz", "/openapi"))
        assert is_told or (is_page and "all other pages" in table), (method, path)
