"""Imports run one way: scripts -> processor -> data, model, loss -> utils."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "model": {"model", "utils"},
    "loss": {"loss", "utils"},
    "processor": {"processor", "data", "model", "loss", "utils"},
    "configs": {"configs", "processor", "data", "model", "utils"},      # configs/build.py belongs to the scripts
}
FILES = [p for package in MAY_IMPORT for p in sorted((ROOT / package).rglob("*.py"))]


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
    foreign = set(imported_packages(path)) & set(MAY_IMPORT) - MAY_IMPORT[package_of(path)]
    assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_report_is_looked_at():
    assert ROOT / "utils/report/write.py" in FILES


def test_only_configs_know_the_config_tree():
    for path in FILES:
        if package_of(path) != "configs":
            assert "yacs" not in set(imported_packages(path)), path
