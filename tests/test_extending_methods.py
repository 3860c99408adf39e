"""docs/extending-methods.md does what it says: its code is run as it stands there."""
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from loss.linking import start_memory

from loss.methods import METHODS, method_class
from processor.guidance import TextGuidance
from processor.train import train
from tests.tiny import EACH, IMAGES, PEOPLE, TinyRun, tiny_banks, tiny_model, tiny_settings, tiny_tester
from utils.errors import UserError
from utils.modality import Modality

PAGE = (Path(__file__).parent.parent / "docs/extending-methods.md").read_text()


def run_code(code, name):
    module = types.ModuleType(name)
    exec(compile(code, name, "exec"), module.__dict__)
    return module


@pytest.fixture
def page(monkeypatch):
    """The page's method in place; gives the page's test as a module."""
    with pytest.raises(UserError, match="'nearest'; choose cclnet"):
        tiny_settings(METHOD__NAME="nearest")
    file, line, test = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.setitem(sys.modules, "loss.nearest", run_code(file, "loss.nearest"))
    name, path = re.fullmatch(r'\s*"(\w+)": "(\S+)",\s*', line).groups()
    monkeypatch.setitem(METHODS, name, path)
    return run_code(test, "test_of_the_page")


def test_the_pages_own_test_passes(page):
    page.test_each_cluster_is_linked_with_the_nearest()


def test_the_pages_method_trains(page, tiny_clip_file, tmp_path):
    banks, run = tiny_banks(), TinyRun(tmp_path)
    settings = tiny_settings(epochs=2, METHOD__NAME="nearest", METHOD__CROSS_EPOCH=2)
    assert settings.method is method_class("nearest") is sys.modules["loss.nearest"].Nearest
    model = tiny_model(tiny_clip_file)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train("prepare", model, banks, settings, run, tiny_tester(banks))
    first, second = run.rows("prepare")
    assert "loss_cross" not in first and second["loss_cross"] > 0 and second["links"] > 0
    assert any(not torch.equal(start[name], value) for name, value in model.state_dict().items())


def test_the_pages_method_trains_where_clusters_have_no_link(page):
    """A cluster without a text has no partner: its images have no part in the loss across."""
    labels = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}
    known = {m: np.where(labels[m] == 0, -1, labels[m]) for m in Modality}
    guidance = TextGuidance({m: torch.randn(PEOPLE, 8) for m in Modality}, known, 0.1)
    settings = tiny_settings(METHOD__NAME="nearest", METHOD__LINK_BY="text", METHOD__CROSS_EPOCH=1)
    embedded = {m: {"feature": torch.randn(IMAGES, 16)} for m in Modality}
    _, memory = start_memory(embedded, labels, 1, settings, guidance)
    assert memory.needs_whole_batch and all(links[0] == -1 for links in memory.links())
    x = {m: embedded[m]["feature"] for m in Modality}
    across = memory.losses(x, labels)["loss_cross"]
    linked = memory.losses({m: x[m][EACH:] for m in Modality}, {m: labels[m][EACH:] for m in Modality})["loss_cross"]
    none = memory.losses({m: x[m][:EACH] for m in Modality}, {m: labels[m][:EACH] for m in Modality})["loss_cross"]
    assert float(across) > 0 and torch.equal(across, linked) and torch.isfinite(none)


def test_the_pages_command_names_what_there_is():
    command = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1]
    for word in re.findall(r"\S+\.(?:py|yml)", command):
        assert (Path(__file__).parent.parent / word).is_file(), word
