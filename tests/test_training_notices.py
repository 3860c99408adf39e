"""What a run keeps and what it refuses: checkpoints, collapsed clusters, lost files, resuming."""
import copy
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from configs.defaults import as_dict
from loss.methods import METHODS
from processor.evaluate import Evaluation
from processor.metrics import RankMetrics
from processor.run.epoch import finish_stage
from processor.run.folder import FORMAT, check_resumable, read_rows
from processor.run.provenance import versions
from processor.train import train
from tests.tiny import LABELS, TinyRun, tiny_config, tiny_settings, tiny_tester
from utils.errors import Stopped, UserError
from utils.modality import Modality


class ScriptedTester:
    """Tests in the epochs that `rank1` names, and finds its Rank-1; remembers the weights that it was given."""

    def __init__(self, banks, rank1):
        self.real, self.rank1, self.given = tiny_tester(banks), rank1, []
        self.data, self.device = self.real.data, self.real.device

    def is_due(self, epoch, epochs):
        self.epoch = epoch
        return epoch in self.rank1

    def __call__(self, model):
        self.given.append({name: value.clone() for name, value in model.state_dict().items()})
        rank1 = self.rank1[self.epoch]
        numbers = np.array([[rank1, 1.0]]), np.ones(1), np.array([(1 - rank1) / 2]), np.array([rank1 / 4])
        return Evaluation("scripted", "v2t", (0,), (RankMetrics(np.ones(1, bool), *numbers),))


@pytest.fixture
def clusters(stubs):
    """Steps that move a weight; the epochs, counted over all runs, in which all images are in one cluster: a set."""
    in_one, calls = set(), []

    def step(model, *_):
        next(model.parameters()).data += 0.01
        return {"loss_rgb": torch.zeros(()), "loss_ir": torch.zeros(())}

    def labels(modality):
        calls.append(modality)
        return 0 * LABELS[modality] if (len(calls) + 1) // 2 in in_one else LABELS[modality]

    stubs.step, stubs.labels = step, labels
    return in_one


def checkpoint(folder, which, stage="prepare"):
    return torch.load(folder / f"{stage}_{which}.pth", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_best_and_last_checkpoint(model, banks, tmp_path, clusters):
    """The best holds weights and numbers of the epoch with the best Rank-1, and says that test data chose it."""
    tester, run = ScriptedTester(banks, {1: 0.2, 2: 0.6, 3: 0.6}), TinyRun(tmp_path)
    train("prepare", model, banks, tiny_settings(4), run, tester)
    best, last = checkpoint(tmp_path, "best"), checkpoint(tmp_path, "last")
    assert (best["epoch"], best["metrics"]["rank1"], best["metrics"]["mAP"]) == (2, 0.6, 0.2)
    assert same(best["state_dict"], tester.given[1]) and not same(best["state_dict"], last["state_dict"])
    assert last["epoch"] == 4 and "metrics" not in last and "selected" not in last
    assert best["selected"] == "best Rank-1 on test data" and best["model"]["kind"] == last["model"]["kind"]
    assert [("test" in row) for row in run.history] == [True, True, True, False]
    # A resumed run knows the best of the run before.
    for epoch, rank1, kept in ((5, 0.5, 2), (6, 0.7, 6)):
        run = TinyRun(tmp_path, run.saved())
        train("prepare", model, banks, tiny_settings(epoch), run, ScriptedTester(banks, {epoch: rank1}))
        assert (checkpoint(tmp_path, "best")["epoch"], checkpoint(tmp_path, "last")["epoch"]) == (kept, epoch)


@pytest.mark.parametrize("collapsed_in, ends, tries", [({1, 2, 3}, 3, 1), ({1, 3, 4, 5, 6}, 5, 2)])
def test_three_epochs_in_one_cluster_end_train_prepare(model, banks, tmp_path, clusters, collapsed_in, ends, tries):
    """No labels are left for train_clip.py, also where the last epoch is tried again; ALLOW_COLLAPSE lets it go on."""
    clusters |= collapsed_in
    run, tester, strict = TinyRun(tmp_path), ScriptedTester(banks, {}), tiny_settings(5, allow_collapse=False)
    for _ in range(tries):
        with pytest.raises(UserError, match=f"collapsed: in 3 epochs in a row, the last of them epoch {ends}, "):
            train("prepare", model, banks, strict, run, tester)
        assert not run.labels_folder.exists() and len(run.history) == ends
        run = TinyRun(tmp_path, run.saved())
    train("prepare", model, banks, tiny_settings(5), run, tester)
    assert run.labels_folder.exists()


def test_what_was_lost_is_written_again(model, banks, tmp_path, clusters):
    """Labels, last checkpoint, and a test for the page; a finished stage is not trained again."""
    def again():
        run = TinyRun(tmp_path, first.saved())
        tester = ScriptedTester(banks, {1: 0.5})
        tester.epoch = 1
        state = train("prepare", model, banks, tiny_settings(1), run, tester)
        finish_stage("prepare", state, run, tester)
        return state, len(tester.given)

    first, label = TinyRun(tmp_path), tmp_path / "pseudo_labels/train_ir_resized_pseudo_label.npy"
    train("prepare", model, banks, tiny_settings(1), first, ScriptedTester(banks, {1: 0.5}))
    before = label.read_bytes(), checkpoint(tmp_path, "last")
    label.unlink()
    (tmp_path / "prepare_last.pth").unlink()
    state, tests = again()
    after = checkpoint(tmp_path, "last")
    assert label.read_bytes() == before[0] and same(before[1]["state_dict"], after["state_dict"])
    assert (after["metrics"], after["epoch"], tests) == (before[1]["metrics"], 1, 1)
    assert state.evaluation is not None and len(first.history) == len(read_rows(tmp_path)) == 1
    (tmp_path / "report.html").touch()
    (tmp_path / "report_data").mkdir()
    (tmp_path / "report_data/prepare.json").touch()
    written = label.stat().st_mtime_ns, (tmp_path / "prepare_last.pth").stat().st_mtime_ns
    assert again()[1] == 0
    assert (label.stat().st_mtime_ns, (tmp_path / "prepare_last.pth").stat().st_mtime_ns) == written


@pytest.mark.parametrize("best, tested", [(1, [4]), (3, [1, 2, 4])])
def test_test_every_does_not_choose_the_weights_that_an_epoch_begins_with(model, banks, tmp_path, clusters, monkeypatch,
                                                                          best, tested):
    """All epochs before it are tested; the first one begins with what there is."""
    monkeypatch.setattr(METHODS["none"], "best_epoch", best)
    tester, run = ScriptedTester(banks, {epoch: epoch / 9 for epoch in range(1, 5)}), TinyRun(tmp_path)
    tester.is_due = lambda epoch, last: setattr(tester, "epoch", epoch) or epoch == last
    train("prepare", model, banks, tiny_settings(4, METHOD__NAME="none"), run, tester)
    assert [row["epoch"] for row in run.history if "test" in row] == tested


def test_what_a_signal_interrupts_the_waiting_for_is_waited_for_again(tmp_path):
    run, wait = TinyRun(tmp_path), Mock(side_effect=[Stopped("stopped", 15), None])
    run.unwritten = [SimpleNamespace(result=wait)]
    with pytest.raises(Stopped):
        run.written()
    run.written()
    assert wait.call_count == 2 and not run.unwritten


@pytest.mark.parametrize("change", [lambda of: of[1:], lambda of: of / 1, lambda of: 0 * of - 1, lambda of: of - 2])
def test_labels_that_are_none_are_refused(model, banks, tmp_path, stubs, monkeypatch, change):
    monkeypatch.setattr(METHODS["none"], "start", lambda self, start, _: {
        **start.labels, Modality.RGB: change(start.labels[Modality.RGB])})
    with pytest.raises(UserError, match="NoLinks.start returns .* for rgb; expected int64 of shape"):
        train("prepare", model, banks, tiny_settings(2, METHOD__NAME="none"), TinyRun(tmp_path), tiny_tester(banks))


MANIFEST = {"train": {"rgb": {"images": 3, "contents": "abc"}}, "test": {}}


def facts_of(**changes):
    return {"config": as_dict(tiny_config(**changes)), "manifest": MANIFEST, "weights": "w1", "pseudo_labels": "p1"}


def content_of(**facts):
    return {"format": FORMAT, "versions": versions(), **facts_of(), **facts}


@pytest.mark.parametrize("changes, sentence", [
    ({"SEED": 2}, "SEED 1, now it is 2"), ({"OPTIM__LR": 0.001}, "OPTIM.LR 0.00035, now it is 0.001"),
    ({"METHOD__SWAP_SCALE": 0.5}, "METHOD.SWAP_SCALE 0.1"), ({"METHOD__NAME": "pgm"}, "METHOD.NAME 'cclnet', now"),
    ({"DATASET__TRIAL": 2}, "DATASET.TRIAL"),
    ({"PREPARE__EPOCHS": 119}, "PREPARE.EPOCHS 120, now it is 119; only more epochs may be asked for")])
def test_other_settings_are_refused_by_name(changes, sentence):
    with pytest.raises(UserError, match=f"the run in here was started with {sentence}.*add --fresh"):
        check_resumable(content_of(), facts_of(**changes), "here")


def test_a_setting_that_a_run_did_not_know_had_its_default():
    content = content_of()
    del content["config"]["METHOD"]["SWAP_SCALE"]
    assert check_resumable(content, facts_of(), "here") == []
    with pytest.raises(UserError, match="SWAP_SCALE 0.1, now it is 0.5"):
        check_resumable(content, facts_of(METHOD__SWAP_SCALE=0.5), "here")


@pytest.mark.parametrize("changes, lines", [
    ({}, []), ({"PREPARE__EPOCHS": 121, "FINETUNE__EPOCHS": 130}, [
        "resuming with FINETUNE.EPOCHS 130 instead of 120", "resuming with PREPARE.EPOCHS 121 instead of 120"]),
    ({"TEST__EVERY": 1}, ["resuming with TEST.EVERY 1 instead of 5"]),
    ({"DATASET__ROOT": "moved"}, ["resuming with DATASET.ROOT 'moved' instead of 'dataset/SYSU-MM01'"])])
def test_what_may_change_is_said(changes, lines):
    assert check_resumable(content_of(), facts_of(**changes), "here") == lines


@pytest.mark.parametrize("key, value, sentence", [
    ("weights", "w2", "with other weights than"), ("pseudo_labels", "p2", "with other pseudo labels than"),
    ("format", "cclnet-2", "of another version of this project"),
    ("manifest", {"train": {"rgb": {"images": 4}}, "test": {}}, "other images: here are 3 train rgb images instead")])
def test_other_weights_labels_or_images_are_refused(key, value, sentence):
    with pytest.raises(UserError, match=sentence):
        check_resumable(content_of(**{key: value}), facts_of(), "here")


def test_other_versions_are_a_warning_and_a_key_that_is_new_since_the_start_is_no_change():
    content = content_of(config=copy.deepcopy(facts_of()["config"]), versions={**versions(), "torch": "2.0"})
    del content["config"]["METHOD"]["SWAP_SCALE"]
    line, = check_resumable(content, facts_of(), "here")
    assert line.startswith("warning: resuming with torch ") and "instead of 2.0" in line
