"""Record every program and seed once: runs are kept in a folder and found again by their programs' source."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from benchmarks.verdicts import programs
from benchmarks.verdicts.program import Outcome, Program

HERE = Path(__file__).parent
RUNS = HERE / "runs"
SHARED = ("program", "data", "networks", "tasks", "training", "lightning")


@dataclass(frozen=True)
class Recorded:
    """A recorded run of a program and how it ended; error: why it could not be recorded, "" otherwise."""

    name: str
    seed: int
    path: Path
    outcome: Outcome | None
    error: str = ""


def record_all(names: Iterable[str], seeds: int, jobs: int) -> Iterator[Recorded]:
    """Record what isn't yet, in `jobs` processes of one thread each."""
    tasks = [(name, seed) for seed in range(seeds) for name in names]
    if jobs == 1:
        yield from (record(task) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(record, tasks)


def record(task: tuple[str, int]) -> Recorded:
    """Train and record one program with one seed, unless its folder exists."""
    name, seed = task
    recorded = find(name, seed)
    if recorded.outcome is None and not recorded.error:
        _train(programs.PROGRAMS[name], seed, recorded.path)
    return find(name, seed)


def find(name: str, seed: int) -> Recorded:
    """Return what is recorded of a program and seed; its outcome is None if nothing is."""
    path = RUNS / f"{name}-{seed}-{_key(name)}"
    file = path / "outcome.json"
    if not file.exists():
        return Recorded(name, seed, path, None)
    content = json.loads(file.read_text())
    if "error" in content:
        return Recorded(name, seed, path, None, content["error"])
    trace = tuple((step, score) for step, score in content.pop("trace"))
    return Recorded(name, seed, path, Outcome(**content, trace=trace))


def _train(program: Program, seed: int, path: Path) -> None:
    import torch

    from benchmarks.verdicts.training import train

    torch.set_num_threads(1)
    for old in RUNS.glob(f"{program.name}-{seed}-????????"):
        shutil.rmtree(old)
    try:
        content = asdict(train(program, seed, path / "run"))
    except Exception as error:  # one program that cannot be recorded must not hide the others
        content = {"error": f"{type(error).__name__}: {error}"}
    path.mkdir(parents=True, exist_ok=True)
    (path / "outcome.json").write_text(json.dumps(content))


@cache
def _key(name: str) -> str:
    """Hash the source that a program consists of: shared modules, its family's functions, its own build."""
    build = programs.PROGRAMS[name].build
    module = sys.modules[getattr(build, "func", build).__module__]
    tree = ast.parse(Path(str(module.__file__)).read_text())
    listing = next(node for node in tree.body if _assigns_programs(node))
    tree.body.remove(listing)
    index = [program.name for program in module.PROGRAMS].index(name)
    call = listing.value.elts[index].args[1]  # type: ignore[attr-defined]
    text = _shared_source() + "".join(ast.dump(_without_docstrings(part)) for part in (tree, call))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@cache
def _shared_source() -> str:
    return "".join(code_of(HERE / f"{part}.py") for part in SHARED)


def code_of(path: Path) -> str:
    """Return what a file of Python does, whatever its comments and docstrings say."""
    return ast.dump(_without_docstrings(ast.parse(path.read_text())))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return tree


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _assigns_programs(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROGRAMS"
