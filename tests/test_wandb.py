"""LOG.WANDB: the numbers of every epoch reach the package, which is an extra and stands in here."""
import importlib.machinery
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import scripts
import trees

from processor.run.events import WandbLog


class Package(ModuleType):
    """What is called of wandb, remembering the calls."""

    def __init__(self, fails=False):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.fails, self.started, self.defined, self.logged = fails, [], {}, []
        self.Histogram = self.Image = list

    def init(self, **settings):
        if self.fails:
            raise RuntimeError("api_key not configured (no-tty)")
        self.started.append(settings)
        return SimpleNamespace(log=self.logged.append,
                               define_metric=lambda name, step_metric: self.defined.update({name: step_metric}))


@pytest.fixture
def words(tmp_path, tiny_clip_file):
    data = trees.people_tree(tmp_path / "data")
    return scripts.settings(DATASET__ROOT=data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=tmp_path / "run",
                            PREPARE__EPOCHS=2, LOG__WANDB=True)


def test_numbers_of_every_epoch(words, tmp_path, monkeypatch):
    scripts.without_report(monkeypatch)
    package = Package()
    monkeypatch.setitem(sys.modules, "wandb", package)
    assert scripts.call(scripts.load("train_prepare"), words) == 0
    assert [(s["job_type"], s["config"]["PREPARE"]["EPOCHS"]) for s in package.started] == [("prepare", 2)]
    assert package.defined == {"prepare/*": "prepare/epoch"}
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for row, logged in zip(rows, package.logged, strict=True):
        assert logged["prepare/epoch"] == row["epoch"] and logged["prepare/loss/rgb"] == row["loss_rgb"]
        assert sum(logged["prepare/clusters/cluster_size_ir"]) > 0
    assert package.logged[-1]["prepare/test/rank1"] == rows[-1]["test"]["rank1"]
    WandbLog(tmp_path, "prepare", {}).show("prepare", 2, {"test_map": "a picture"})
    assert package.logged[-1] == {"prepare/epoch": 2, "prepare/test/map": list("a picture")}


def test_without_the_package_nothing_is_written(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert scripts.call(scripts.load("train_prepare"), words) == 2
    assert "the package wandb is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_package_that_cannot_start(words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Package(fails=True))
    assert scripts.call(scripts.load("train_prepare"), words) == 2
    assert "wandb cannot start (api_key not configured" in capsys.readouterr().err
