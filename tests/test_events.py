"""The numbers of every epoch for TensorBoard and for Weights & Biases, an extra that stands in here."""
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from processor.run.events import EventLog, WandbLog, check_wandb
from utils.errors import UserError


def test_event_files_hold_numbers_pictures_and_settings(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"SEED": 7, "OPTIM": {"STEPS": [1, 2]}}
    for first in (1, 2):                   # the second log goes on with an epoch that had been written already
        monkeypatch.setattr("time.time", lambda now=1e9 + first: now)     # files are read in this order
        log = EventLog(tmp_path, settings)
        for epoch in (first, first + 1):
            log.add("prepare", epoch, {"loss_ir": 1.0 / (epoch + first), "seconds": 2, "lr": 0.1, "link_accuracy": 0.5,
                                       "ari_rgb": 0.5, "test": {"rank1": 0.5, "mode": "all"}},
                    {"cluster_size_ir": np.arange(9)})
    monkeypatch.setattr("time.time", lambda: 1e9 + 3)
    EventLog(tmp_path, settings).add("prepare", 3, {}, pictures={"test_map": Image.new("RGB", (3, 2))})    # a lost page
    events = EventAccumulator(str(tmp_path / "prepare"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"loss/ir", "time/seconds", "step/lr", "links/link_accuracy", "clusters/ari_rgb",
                                    "test/rank1"}
    assert tags["histograms"] == ["clusters/cluster_size_ir"] and tags["images"] == ["test/map"]
    assert [(e.step, e.value) for e in events.Scalars("loss/ir")] == [(1, 0.5), (2, pytest.approx(1 / 4)),
                                                                      (3, pytest.approx(1 / 5))]
    assert [(e.step, e.width, e.height) for e in events.Images("test/map")] == [(3, 3, 2)]


def test_weights_and_biases_gets_the_same(tmp_path, monkeypatch):
    package = SimpleNamespace(started=[], defined={}, logged=[], Histogram=list, Image=bool)
    package.init = lambda **settings: package.started.append(settings) or SimpleNamespace(
        log=package.logged.append,
        define_metric=lambda name, step_metric: package.defined.update({name: step_metric}))
    monkeypatch.setitem(sys.modules, "wandb", package)
    log, config = EventLog(tmp_path / "tensorboard", {}), {"SEED": 7}
    log.others.append(WandbLog(tmp_path / "run", "prepare", config))
    log.add("prepare", 2, {"loss_rgb": 0.5, "test": {"rank1": 0.25, "mode": "all"}},
            {"cluster_size_ir": np.array([3, 4])}, {"test_map": Image.new("RGB", (1, 1))})
    assert [(s["job_type"], s["group"], s["config"]) for s in package.started] == [("prepare", "run", config)]
    assert package.defined == {"prepare/*": "prepare/epoch"}
    [logged] = package.logged
    assert logged.pop("prepare/test/map") and logged == {
        "prepare/epoch": 2, "prepare/loss/rgb": 0.5, "prepare/test/rank1": 0.25,
        "prepare/clusters/cluster_size_ir": [3, 4]}
    package.init = lambda **_: 1 / 0
    with pytest.raises(UserError, match="wandb cannot start .division by zero"):
        WandbLog(tmp_path, "prepare", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package wandb is not installed"):
        check_wandb()
