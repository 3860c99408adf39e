"""Imports go down only, without exceptions: scripts, tools -> processor -> data, model, configs -> loss, utils."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (("utils",), ("loss",), ("data", "model", "configs"), ("processor",), ("tools", "benchmarks"))
TOP = {"train_prepare", "train_clip", "test", "tests"}      # which nothing imports
PACKAGES = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def package_of(path):
    """The first folder of a file's path in the repository."""
    return path.relative_to(ROOT).parts[0]


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_direction(path):
    """A package imports itself and what lies below it; data, model and configs do not import one another."""
    own = package_of(path)
    foreign = {name for name in imported_packages(path) if name in PACKAGES and name != own
               and PACKAGES[name] >= PACKAGES[own]} | TOP & set(imported_packages(path))
    assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_every_package_is_looked_at():
    folders = {package_of(p) for p in ROOT.glob("*/*.py")} - {"tests"}
    assert folders == set(PACKAGES) and ROOT / "report/write.py" in FILES


def test_only_configs_know_the_config_tree():
    for path in FILES:
        if package_of(path) != "configs":
            assert "yacs" not in set(imported_packages(path)), path


def test_no_function_is_longer_than_60_lines():
    for path in [*FILES, *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"
