"""The tree in the module's text is the tree there is, and every error can be shown."""

from __future__ import annotations

import inspect
import re

import pytest

from webhook import errors
from webhook.errors import Advice, Place, ReplicatorError, SettingsError, StoreError

ALL = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, ReplicatorError)]


def test_the_module_s_text_draws_every_class_in_its_place() -> None:
    drawn = re.findall(r"^ {4}([│├└─ ]*)(\w+)", errors.__doc__ or "", re.MULTILINE)
    parents = ["ReplicatorError"]
    found = {}
    for indent, name in drawn:
        depth = len(indent) // 4
        found[name] = parents[depth - 1] if depth else "Exception"
        parents[depth:] = [name]
    assert found == {each.__name__: each.__base__.__name__ for each in ALL}


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_word_of_its_own_and_an_advice(kind: type[ReplicatorError]) -> None:
    assert [each.code for each in ALL].count(kind.code) == 1
    assert isinstance(kind.advice, Advice)


def test_a_store_s_error_says_what_was_asked_of_whom() -> None:
    place = Place(side="target", operation="PutObject", bucket="b", key="new\nline")
    error = StoreError("answered 500", place, status=500, hint="Wait.")
    assert str(error) == r"target PutObject 'b/new\nline': answered 500"
    assert (error.hint, error.status, error.retry_after_s) == ("Wait.", 500, None)
    assert str(Place(side="source", operation="HeadBucket", bucket="b")) == "source HeadBucket 'b'"


def test_all_problems_of_the_settings_are_in_the_message() -> None:
    error = SettingsError(["A is missing", "B is wrong"])
    assert "A is missing" in error.message
    assert "B is wrong" in error.message
    assert error.problems == ("A is missing", "B is wrong")
