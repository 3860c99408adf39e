"""The examples in docstrings give what they say."""
import doctest
import importlib

import numpy as np
import pytest
import scripts
import torch

ROOMS = ("clustering", "configs", "data", "loss", "model", "processor", "report", "tools", "utils")
MODULES = sorted(".".join(path.relative_to(scripts.REPOSITORY).with_suffix("").parts)
                 for room in ROOMS for path in (scripts.REPOSITORY / room).rglob("*.py")
                 if "    >>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, monkeypatch):
    monkeypatch.chdir(scripts.REPOSITORY)
    from model.towers.registry import load_tower
    torch.set_printoptions(profile="default")
    found = doctest.testmod(importlib.import_module(name),
                            extraglobs={"np": np, "torch": torch, "load_tower": load_tower})
    assert found.attempted and not found.failed
