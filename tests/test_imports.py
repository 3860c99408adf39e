"""Imports go down only, the rooms of a floor do not import one another, and nothing grows beyond what can be read."""
import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_prepare", "train_clip", "test")
FLOORS = (("utils",), ("clustering", "data", "loss", "model"), ("configs",), ("processor", "report"),
          (*SCRIPTS, "tools", "benchmarks"))
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TREES = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
         for room in FLOOR_OF for path in (*(ROOT / room).rglob("*.py"), *ROOT.glob(f"{room}.py"))}
LINES_OF_A_FUNCTION, LINES_OF_THE_LOOP, MODULES_OF_UTILS = 60, 45, 10


def imported(tree):
    """Names of the modules, or of what is in them, that a file imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("room", FLOOR_OF)
def test_direction(room):
    for module, tree in TREES.items():
        if module.split(".")[0] == room:
            rooms = {name.split(".")[0] for name in imported(tree)} - {room}
            wrong = {other for other in rooms if other == "tests" or FLOOR_OF.get(other, -1) >= FLOOR_OF[room]}
            assert not wrong, f"{module} imports {wrong}"


def test_no_circle():
    of_module = {module: {name if name in TREES else name.rpartition(".")[0] for name in imported(tree)} & TREES.keys()
                 for module, tree in TREES.items()}
    list(TopologicalSorter(of_module).static_order())       # raises CycleError, which names the circle


def test_every_room_has_a_floor():
    made = {path.name for path in ROOT.iterdir() if any(path.glob("**/*.py")) and path.name[0] != "."}
    assert made - {"tests", "docs", "site"} == FLOOR_OF.keys() - set(SCRIPTS)
    assert {path.stem for path in ROOT.glob("*.py")} == set(SCRIPTS)


def test_only_configs_know_the_config_tree():
    assert {module.split(".")[0] for module, tree in TREES.items()
            if any(name.startswith("yacs") for name in imported(tree))} == {"configs"}


def test_sizes():
    for module, tree in TREES.items():
        for function in functions(tree):
            lines = function.end_lineno - function.lineno + 1
            assert lines <= LINES_OF_A_FUNCTION, f"{module}.{function.name} has {lines} lines"
    loop, = (function for function in functions(TREES["processor.train"]) if function.name == "train")
    assert loop.end_lineno - loop.lineno < LINES_OF_THE_LOOP
    assert len(list((ROOT / "utils").glob("[!_]*.py"))) <= MODULES_OF_UTILS
