"""Notifications as nobody should send them, made of real ones, and what holds for the parser all the same.

`make fuzz` runs this guided by coverage (atheris, libFuzzer's options: ARGS="-max_total_time=300");
test_notifications.py sends a bounded number of the same to the real route.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from webhook import events
from webhook.errors import BadRequest
from webhook.events import DEPTH_MAX, Asked, asked, key_problem
from webhook.rules import Rules, Template

CORPUS = Path(__file__).parent / "corpus"
RULES = Rules(
    templates=(
        Template(name="all", sources=("source",), target_bucket="copy", exclude=("*.part",)),
        Template(name="large", sources=("source",), prefix="large/", target_bucket="long-term"),
    )
)
NAMES = ("Records", "s3", "bucket", "object", "key", "name", "eventName", "eventTime", "eventSource")
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, -(2**64), 10**400, 1.5, -0.0, 1e308, math.nan, math.inf, -math.inf),
    *("", " ", "\0", "%00", "\ud800", "%ED%A0%80", "%", "%zz", "%FF", "+", "\u202e", "\ufeff", "\U0010ffff"),
    *("..", "../../etc/passwd", "//", "é" * 512, "é" * 513, "x" * 1024, "x" * 1025, "%41" * 1025, "x" * 300),
    *("<script>alert(1)</script>", "'; DROP TABLE entries;--", "{{7*7}}", "\x1b[31m", "\r\nX: y", "ceph:s3"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-02-30T00:00:00Z", "1e9", "s3:"),
    *([], {}, [[]], [{}], {"": ""}, {"name": {}}, {"key": []}, [None] * 50),
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "latin-1")


def bodies() -> list[bytes]:
    """The corpus."""
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.json"))]


# ── mutations ────────────────────────────────────────────────────────────────────────────────────────


def mutated(body: bytes, choose: Random) -> bytes:
    """The body with one to four things wrong with it: the same for the same choices."""
    document = _loaded(body)
    for _ in range(choose.randint(1, 3)):
        document = choose.choice((_replace, _replace, _delete, _duplicate, _rename, _nest))(document, choose)
    text = json.dumps(document)
    if choose.random() < 0.1:
        text = _deep(text, choose)
    if choose.random() < 0.2:
        text = _with_a_name_twice(text, choose)
    if choose.random() < 0.7:
        return text.encode()
    written = text if choose.random() < 0.5 else json.dumps(document, ensure_ascii=False)
    return _torn(written.encode(choose.choice(ENCODINGS), "replace"), choose)


def _loaded(body: bytes) -> Any:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {"Records": [body.decode("latin-1")]}
    return found if depth(found) <= DEPTH_MAX else {}


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its names or numbers."""
    todo = [document]
    while todo:
        container = todo.pop()
        inside = container.items() if isinstance(container, dict) else enumerate(container)
        for place, value in list(inside):
            yield container, place
            if isinstance(value, dict | list):
                todo.append(value)


def _place(document: Any, choose: Random) -> tuple[Any, Any] | None:
    places = list(_places(document)) if isinstance(document, dict | list) else []
    return choose.choice(places) if places else None


def _replace(document: Any, choose: Random) -> Any:
    odd = copy.deepcopy(choose.choice(ODD))
    if (found := _place(document, choose)) is None or choose.random() < 0.02:
        return odd
    found[0][found[1]] = odd
    return document


def _delete(document: Any, choose: Random) -> Any:
    if found := _place(document, choose):
        del found[0][found[1]]
    return document


def _duplicate(document: Any, choose: Random) -> Any:
    """A subtree once more, somewhere else."""
    here, there = _place(document, choose), _place(document, choose)
    if here and there:
        twin = copy.deepcopy(here[0][here[1]])
        if isinstance(there[0], list):
            there[0].append(twin)
        else:
            there[0][there[1]] = twin
    return document


def _rename(document: Any, choose: Random) -> Any:
    found = _place(document, choose)
    if found and isinstance(found[0], dict):
        value = found[0].pop(found[1])
        found[0][choose.choice((*NAMES, found[1].upper(), "\ud800", "\0"))] = value
    return document


def _nest(document: Any, choose: Random) -> Any:
    found = _place(document, choose)
    if found:
        value = found[0][found[1]]
        for _ in range(choose.choice((1, 2, 30))):
            value = [value] if choose.random() < 0.5 else {choose.choice(NAMES): value}
        found[0][found[1]] = value
    return document


def _with_a_name_twice(text: str, choose: Random) -> str:
    names = list(re.finditer(r'"\w+": ', text))
    if not names:
        return text
    at = choose.choice(names)
    return f"{text[: at.start()]}{at[0]}{json.dumps(choose.choice(ODD))}, {text[at.start() :]}"


def _deep(text: str, choose: Random) -> str:
    values = list(re.finditer(r'(?<=: )("\w*"|\d+)', text))
    if not values:
        return text
    at, many = (
        choose.choice(values),
        choose.choice((80, 93, 94, 95, 96, 97, 98, 99, 100, 500, 960, 990, 50_000)),
    )
    return f"{text[: at.start()]}{'[' * many}{at[0]}{']' * many}{text[at.end() :]}"


def _torn(body: bytes, choose: Random) -> bytes:
    """As bytes: cut off, a byte changed, or one too many."""
    at = choose.randrange(len(body) + 1)
    byte = bytes([choose.randrange(256)])
    return choose.choice((body, body[:at], body[:at] + byte + body[at + 1 :], body[:at] + byte + body[at:]))


# ── what holds ───────────────────────────────────────────────────────────────────────────────────────


def depth(document: Any) -> int:
    """How many containers are in each other."""
    level, deep = [document], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        deep += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return deep


def records_of(body: bytes) -> int | None:
    """How many records are to be answered for; None where the body is to be refused."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or depth(document) > DEPTH_MAX:
        return None
    records = document.get("Records")
    return len(records) if isinstance(records, list) and records else 1


def check(body: bytes) -> Asked | None:
    """What the body asks for; None where it is refused. Raises: AssertionError."""
    count = records_of(body)
    try:
        found = asked(body, RULES)
    except BadRequest:
        assert count is None
        return None
    assert count == found.accepted + found.ignored + len(found.misfits)
    assert found == asked(body, RULES)
    for request in found.requests:
        assert key_problem(request.key) is None
        assert re.fullmatch("[0-9a-f]{16}", request.event_id)
        assert math.isfinite(request.event_at)
    for misfit in found.misfits:
        assert misfit.reason
        assert misfit.raw.isascii()
        assert re.fullmatch("[0-9a-f]{64}", misfit.record_id)
        json.loads(misfit.raw)
    return found


# ── guided by coverage ───────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Runs until libFuzzer's options say stop, or something does not hold."""
    import atheris

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        choose = Random(seed)  # libFuzzer names the seed
        if choose.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(data, choose)[:max_size]

    run: Callable[[bytes], object] = check
    for module in (events, json, json.decoder, json.encoder):
        for function in filter(inspect.isfunction, vars(module).values()):
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
