"""What a grid will cost: the arithmetic, the sizes of missing data sets, and the plan of a miniature run."""
import re

import numpy as np
import pytest
import scripts
from trees import sysu_tree

from configs.defaults import load_config
from tools import experiments
from tools.lib import plan
from tools.lib.cost import StageCost, count_tests, duration
from utils.errors import UserError
from utils.modality import Modality


def test_arithmetic():
    cost = StageCost("prepare", 20, 10.0, tests=2, test_seconds=5.0, once_seconds=7.0, swap_epochs=5, swap_seconds=2.0,
                     host_gb=1.5, disk_gb=0.25)
    assert cost.seconds == 227
    assert cost.line() == ("estimate of prepare: 3.8 min in all (20 epochs of 10.0 s, 2 tests of about 5.0 s), memory "
                           "1.5 GB, 0.25 GB on disk")
    assert duration(5399) == "90.0 min" and duration(7200) == "2.0 h"
    assert [count_tests(*pair) for pair in ((20, 10), (44, 10), (3, 5), (120, 5))] == [2, 5, 1, 24]
    total = plan.format_plan([cost, StageCost("prompt", 3, 1.0, host_gb=2.0, disk_gb=0.5)]).splitlines()[-1].split()
    assert total == ["a", "run", "3.8", "min", "2.00", "0.00", "0.75"]


@pytest.mark.parametrize("words, train, persons, test, query, gallery, trials", [
    ([], (22258, 11909), 395, (3010, 3803), 3803, 301, 10),
    (["TEST.MODE", "indoor", "TEST.TRIALS", "2"], (22258, 11909), 395, (224, 3803), 3803, 112, 2),
    (["DATASET.NAME", "regdb"], (2060, 2060), 206, (2060, 2060), 2060, 2060, 1),
    (["DATASET.NAME", "llcm", "TEST.MODE", "t2v"], (16946, 13975), 713, (8680, 7166), 7166, 3159, 10)])
def test_sizes_of_missing_data_sets(words, train, persons, test, query, gallery, trials):
    sizes = plan.published_sizes(load_config(None, words))
    assert sizes == plan.Sizes(dict(zip(Modality, train)), persons, dict(zip(Modality, test)), query, gallery, trials)


def test_nothing_is_published_of_own_images(tmp_path):
    with pytest.raises(UserError, match="is missing, and nothing is published of the data set csv"):
        plan.Measured(load_config(None, ["DATASET.NAME", "csv", "DATASET.ROOT", str(tmp_path / "none")]))


@pytest.fixture
def here(monkeypatch):
    """Measure in this process."""
    class Pool:
        def __init__(self, _):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply(self, function, arguments):
            return function(*arguments)

    monkeypatch.setattr(plan.multiprocessing, "get_context", lambda _: type("Context", (), {"Pool": Pool}))
    monkeypatch.setattr(plan, "STEPS", 2)


@pytest.mark.parametrize("there", [True, False])
def test_plan_of_a_miniature_grid(tmp_path, tiny_clip_file, here, capsys, monkeypatch, there):
    """Of real images, or of synthetic ones in the published numbers."""
    root = tmp_path / "data"
    if there:
        sysu_tree(root, images=3)
    monkeypatch.setattr(plan.SysuDataSet, "published", {**plan.SysuDataSet.published, "training persons": 6,
                        "training RGB images": 48, "training IR images": 36, "test IR images": 20})
    words = scripts.settings(DATASET__ROOT=root, OUTPUT_DIR=tmp_path / "runs", CLUSTER__EPS=0.9, PREPARE__EPOCHS=7,
                             MODEL__CLIP_WEIGHTS=tiny_clip_file, TEST__TRIALS=2, TEST__EVERY=3, CLUSTER__K1=4)
    experiments.main(["plan", "--seeds", "1", "2", "--vary", "FINETUNE.EPOCHS", "5", "9", *words])
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines() if re.match("prepare|prompt|finetune", line)] == [
        ["prepare", "7"], ["prompt", "1"], ["finetune", "5"], ["prepare", "7"], ["prompt", "1"], ["finetune", "9"]]
    assert [line.split()[3] for line in said.splitlines() if re.match("prepare|finetune", line)] == ["3", "2", "3", "3"]
    assert said.count("FINETUNE.EPOCHS") == 2 and "\n4 runs: " in said
    assert said.count("synthetic images") == (0 if there else 2)
    seconds = [float(line.split()[2]) for line in said.splitlines() if re.match("prepare|finetune", line)]
    assert all(value >= 0 for value in seconds) and not (tmp_path / "runs").exists()


def test_plan_of_a_method_that_changes_labels(tmp_path, tiny_clip_file, here, monkeypatch):
    """Both epochs that are measured begin with the clusters, of which rpnr makes labels of its own."""
    begun, start = [], plan.start_memory

    def noted(embedded, labels, epoch, *rest):
        begun.append({m: labels[m].copy() for m in labels})
        return start(embedded, labels, epoch, *rest)

    monkeypatch.setattr(plan, "start_memory", noted)
    words = scripts.settings(DATASET__ROOT=sysu_tree(tmp_path / "data", images=3), CLUSTER__EPS=0.9, CLUSTER__K1=4,
                             MODEL__CLIP_WEIGHTS=tiny_clip_file, METHOD__NAME="rpnr", METHOD__TOP_IMAGES=1,
                             METHOD__CROSS_EPOCH=1)
    (cost,) = plan.measure_prepare((None, words), 0.0)
    assert cost.epoch_seconds > 0
    first, second = begun
    assert all(np.array_equal(first[m], second[m]) for m in first)
    with pytest.raises(UserError, match="train_prepare.py has no texts"):
        plan.measure_prepare((None, [*words, "METHOD.LINK_BY", "text"]), 0.0)


def test_scripts_print_the_estimate_after_their_first_epoch(tmp_path, tiny_clip_file, monkeypatch):
    scripts.without_report(monkeypatch)
    words = scripts.settings(DATASET__ROOT=sysu_tree(tmp_path / "data", images=3), OUTPUT_DIR=tmp_path / "run",
                             MODEL__CLIP_WEIGHTS=tiny_clip_file, PREPARE__EPOCHS=2, PROMPT__EPOCHS=2,
                             FINETUNE__EPOCHS=2, CLUSTER__EPS=0.9, CLUSTER__K1=4)
    for name in ("train_prepare", "train_clip"):
        assert scripts.call(scripts.load(name), words) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"estimate of prepare: \d+\.\d min in all \(2 epochs of \d+\.\d s, 1 tests of about", log)
    assert "estimate of prompt: " in log and "estimate of finetune: " in log and log.count("estimate of") == 3
    assert log.index("prepare 1/2") < log.index("estimate of prepare") < log.index("prepare 2/2")
    size = sum((tmp_path / "run" / f"prepare_{name}").stat().st_size for name in ("last.pth", "state.pth"))
    assert f"{2 * size / 2**30:.2f} GB on disk" in log.split("estimate of prepare")[1].splitlines()[0]
