"""Changes a module in one small place at a time, and looks whether its tests notice.

mutmut makes the changed modules (mutants) in a copy of the tree, .mutants/tree, and runs for each the tests
that reach the change, in forks of one process; mutants_plugin.py prepares pytest for that. What no test
notices is shown as a diff: a test is missing, the code is not needed, or the change makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

TREE = Path(".mutants/tree")
COPIED = ("webhook", "tests", "scripts", "config", "docs", "pyproject.toml")
LEDGER = "ledger ledger_edges ledger_views ledger_takers ledger_proof ledger_clock progress counts"
LEDGER_TESTS = tuple(f"tests/contract/test_{name}.py" for name in LEDGER.split())
TESTS = {
    "webhook/retry.py": ("tests/unit/test_retry.py",),
    "webhook/events.py": ("tests/unit/test_events.py",),
    "webhook/ledger.py": LEDGER_TESTS,
    "webhook/statements.py": (*LEDGER_TESTS, "tests/contract/test_deletes.py"),
    "webhook/copier.py": ("tests/integration/test_copier.py", "tests/integration/test_fence.py"),
    "webhook/multipart.py": ("tests/integration/test_copier.py",),
}
STATUSES: dict[int | None, str] = {
    1: "killed",
    3: "killed",
    36: "timed out",
    -24: "timed out",
    0: "survived",
    33: "no tests",
}
"""What mutmut's exit codes mean."""
TIMEOUT_FACTOR = 10
TIMEOUT_LEAST_S = 60
"""A mutant may take so many times as long as its tests do, and so many seconds besides."""
HEADING = "module | mutants | killed | timed out | survived | no tests | score"


def main() -> None:
    """The command line."""
    arguments = _parse()
    _copy_tree(arguments.module)
    _configure(arguments.module, arguments.k)
    known = _generate(arguments.module)
    if unknown := set(arguments.mutants) - set(known):
        sys.exit(f"{arguments.module} has no such mutants: {', '.join(sorted(unknown))}")
    names = arguments.mutants or _sample(known, arguments.sample, arguments.seed)
    _mutmut("run", "--max-children", "1", *names)  # by name: it first sees each of their tests pass
    _report(arguments.module, names)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("mutants", nargs="*", help="only these, by name")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, chosen by chance")
    parser.add_argument("--seed", type=int, default=1, help="of that chance")
    parser.add_argument("-k", default="not postgresql", help="which tests, as for pytest")
    return parser.parse_args()


def _copy_tree(module: str) -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy2
        copy(name, TREE / name)
    source = TREE / module
    source.write_text(_with_decorators_last(source.read_text()))


def _with_decorators_last(source: str) -> str:
    """The same module, its methods decorated at its end: mutmut leaves a method with a decorator alone."""
    lines = source.splitlines()
    for owner in [each for each in ast.parse(source).body if isinstance(each, ast.ClassDef)]:
        for method in [each for each in owner.body if isinstance(each, ast.FunctionDef)]:
            name = f"{owner.name}.{method.name}"
            for decorator in reversed(method.decorator_list):
                if ast.unparse(decorator) not in ("classmethod", "staticmethod"):
                    lines[decorator.lineno - 1] = ""
                    lines.append(f"{name} = {ast.unparse(decorator)}({name})")
    return "\n".join([*lines, ""])


def _configure(module: str, keyword: str) -> None:
    settings = {
        "source_paths": ["webhook"],
        "only_mutate": [module],
        "also_copy": list(COPIED[2:-1]),
        "pytest_add_cli_args": ["-p", "scripts.mutants_plugin", "-k", keyword],
        "pytest_add_cli_args_test_selection": list(TESTS[module]),
        "timeout_multiplier": TIMEOUT_FACTOR,
        "timeout_constant": TIMEOUT_LEAST_S / TIMEOUT_FACTOR,
        "use_git_change_detection": False,
        "track_dependencies": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (TREE / "pyproject.toml").open("a") as config:
        config.write("\n".join(["", "[tool.mutmut]", *lines, ""]))


def _generate(module: str) -> list[str]:
    """The names of all mutants of the module; also finds out which tests reach what."""
    _mutmut("run", "--max-children", "1", "none", is_quiet=True)
    return list(_results(module))


def _sample(names: list[str], size: int | None, seed: int) -> list[str]:
    if not size or size >= len(names):
        return names
    print(f"{size} of {len(names)} mutants, chosen with --seed {seed}")
    return sorted(random.Random(seed).sample(names, size))


def _mutmut(*arguments: str, is_quiet: bool = False) -> None:
    program = Path(sys.executable).with_name("mutmut")
    environment = os.environ | {"PYTHONHASHSEED": "0"}  # the order of the tests
    output = subprocess.DEVNULL if is_quiet else None
    subprocess.run(
        [program, *arguments], cwd=TREE, env=environment, stdout=output, stderr=output, check=False
    )


def _results(module: str) -> dict[str, int | None]:
    found = json.loads((TREE / "mutants" / f"{module}.meta").read_text())
    results: dict[str, int | None] = found["exit_code_by_key"]
    return results


def _status(code: int | None) -> str:
    return STATUSES.get(code, f"exit code {code}")


def _report(module: str, names: list[str]) -> None:
    """Each mutant that no test noticed, then a line of a table; an error where some did not run."""
    results = _results(module)
    if None in (results[name] for name in names):
        sys.exit("some mutants did not run; see above")
    statuses = {name: _status(results[name]) for name in names}
    for name, status in statuses.items():
        if status != "killed":
            print(f"\n{status}:", flush=True)
            _mutmut("show", name)
    counts = Counter(statuses.values())
    numbers = [counts[status] for status in ("killed", "timed out", "survived", "no tests")]
    score = (counts["killed"] + counts["timed out"]) / len(names)
    print(f"\nmutmut {version('mutmut')}\n\n| {HEADING} |\n|{'---|' * 7}")
    print(f"| {' | '.join(map(str, (module, len(names), *numbers)))} | {score:.1%} |")


if __name__ == "__main__":
    main()
