"""What a training run must not lose unnoticed: updates, rates, augmentation, prototypes, checkpoints, page, restart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss.cross_memory import CrossMemory
from torch.optim.optimizer import register_optimizer_step_pre_hook

import processor.train
from data.augment import MEAN, STD, normalise
from loss.cluster_memory import ClusterMemory
from model.cclnet import CCLNet
from processor.evaluate import Evaluation
from processor.metrics import RankMetrics
from processor.train import Batches, train
from tests.tiny import EACH, PEOPLE, TinyRun, tiny_data, tiny_model, tiny_settings, tiny_tester
from utils.modality import Modality

LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_prototypes_follow_the_features_of_every_step(model, banks, tmp_path, monkeypatch):
    """After each step each prototype is what the batch's features make of it, one after another."""
    steps, features = {1: [], 2: []}, {}

    def loss(memory, x, labels, real=ClusterMemory.loss):
        features[id(memory)] = x.detach().clone()
        return real(memory, x, labels)

    def train_step(model, optimizer, memory, batch, *rest, real=processor.train.train_step):
        before = {m: memory.memories[m].prototypes.clone() for m in Modality}
        result = real(model, optimizer, memory, batch, *rest)
        for m in Modality:
            expected = before[m].clone()
            for x, label in zip(F.normalize(features[id(memory.memories[m])], dim=1), batch.labels[m]):
                expected[label] = F.normalize(0.1 * expected[label] + 0.9 * x, dim=0)
            torch.testing.assert_close(memory.memories[m].prototypes, expected)
            assert not torch.allclose(expected, before[m], atol=1e-3)
        steps[memory.epoch].append(result[0])
        return result

    monkeypatch.setattr(ClusterMemory, "loss", loss)
    monkeypatch.setattr(processor.train, "train_step", train_step)
    run = TinyRun(tmp_path)
    train("prepare", model, banks, tiny_settings(epochs=2), run, tiny_tester(banks))
    for row in run.rows("prepare"):         # what is logged is the mean over the epoch's steps
        assert len(steps[row["epoch"]]) >= 6
        for name in ("loss_rgb", "loss_ir"):
            assert row[name] == pytest.approx(np.mean([float(losses[name].detach()) for losses in steps[row["epoch"]]]))


def test_an_epoch_starts_from_the_means_of_its_clusters(model, banks, tmp_path, monkeypatch):
    """A prototype is the normalised mean of all members' features; outliers have no part in it."""
    found, kept = {}, []

    def features(model, bank, modality, *rest, real=processor.train._features):
        embedded = real(model, bank, modality, *rest)
        found[modality] = embedded["feature"]
        return embedded

    def labels(features, modality, *_):
        made = LABELS[modality].copy()
        made[[0, 7]] = -1
        return made

    def memory(self, start, *rest, real=CrossMemory.__init__):
        real(self, start, *rest)
        kept.append({m: self.memories[m].prototypes.clone() for m in Modality})

    monkeypatch.setattr(processor.train, "_features", features)
    monkeypatch.setattr(processor.train, "make_pseudo_labels", labels)
    monkeypatch.setattr(CrossMemory, "__init__", memory)
    train("prepare", model, banks, tiny_settings(epochs=1), TinyRun(tmp_path), tiny_tester(banks))
    assert len(kept) == 1
    for m in Modality:
        members = [[i for i in range(EACH * person, EACH * (person + 1)) if i not in (0, 7)]
                   for person in range(PEOPLE)]
        expected = F.normalize(torch.stack([found[m][rows].mean(0) for rows in members]), dim=1)
        torch.testing.assert_close(kept[0][m], expected)


def rates(model, banks, settings, run, stage="prepare"):
    """Train, and read of every epoch: the learning rates that were stepped with, Adam's steps before its first."""
    seen = []

    def before_step(optimizer, *_):
        done = max((int(state["step"]) for state in optimizer.state.values()), default=0)
        seen.append((len(run.history) + 1, [group["lr"] for group in optimizer.param_groups], done))

    hook = register_optimizer_step_pre_hook(before_step)
    try:
        train(stage, model, banks, settings, run, tiny_tester(banks))
    finally:
        hook.remove()
    first = {}
    for epoch, lr, done in seen:
        assert first.setdefault(epoch, (lr, done))[0] == lr
    return first


SCHEDULE = {"OPTIM__WARMUP_EPOCHS": 3, "OPTIM__WARMUP_FACTOR": 0.1, "OPTIM__STEPS": [4], "OPTIM__LR": 0.001,
            "METHOD__CROSS_EPOCH": 5}


def test_learning_rate_of_each_epoch(model, banks, tmp_path):
    """Warm-up over epochs 1, 2 and 3, the step down in epoch 4: none of them an epoch early or late."""
    run = TinyRun(tmp_path)
    found = rates(model, banks, tiny_settings(5, **SCHEDULE), run)
    assert [found[epoch][0][0] for epoch in range(1, 6)] == pytest.approx([0.0004, 0.0007, 0.001, 0.0001, 0.0001])
    assert [found[epoch][0][1] for epoch in range(1, 6)] == pytest.approx([0.0008, 0.0014, 0.002, 0.0002, 0.0002])
    assert [row["lr"] for row in run.history] == [found[epoch][0][0] for epoch in range(1, 6)]
    assert [epoch for epoch, (_, done) in found.items() if done == 0] == [1]


def test_restart_at_the_swap_epoch(model, banks, tmp_path, monkeypatch):
    """From the swap epoch on a new Adam and a new warm-up; weights and batch statistics are kept."""
    states = {}

    def features(model, bank, modality, settings, epoch, *rest, real=processor.train._features):
        states[epoch] = weights(model)
        return real(model, bank, modality, settings, epoch, *rest)

    run = TinyRun(tmp_path)
    monkeypatch.setattr(processor.train, "_features", features)
    ends = []
    monkeypatch.setattr(TinyRun, "save_model", lambda self, stage, which, content: ends.append(
        weights(model)) if which == "last" else None)
    found = rates(model, banks, tiny_settings(6, restart=True, **SCHEDULE), run, "finetune")
    expected = [0.0004, 0.0007, 0.001, 0.0001, 0.0004, 0.0007]
    assert [found[epoch][0][0] for epoch in range(1, 7)] == pytest.approx(expected)
    assert [epoch for epoch, (_, done) in found.items() if done == 0] == [1, 5]
    assert same(states[5], ends[3])      # what epoch 5 embeds with is what epoch 4 ended with


def test_training_images_are_augmented(model, banks, tmp_path, monkeypatch):
    """With padding and erasing switched on, no image that the model is trained on is the plain one."""
    seen = []

    def forward(self, rgb, ir, heads, real=CCLNet.forward):
        seen.append({Modality.RGB: rgb, Modality.IR: ir})
        return real(self, rgb, ir, heads)

    monkeypatch.setattr(CCLNet, "forward", forward)
    settings = tiny_settings(1, INPUT__PAD=2, INPUT__ERASE=1.0, INPUT__GREY=1.0, INPUT__FLIP=1.0)
    train("prepare", model, banks, settings, TinyRun(tmp_path), tiny_tester(banks))
    for m in Modality:
        plain = normalise(banks[m].batch(np.arange(len(banks[m])))).flatten(1)
        trained = torch.cat([images[m] for images in seen]).flatten(1)
        assert len(trained) >= 24 and torch.cdist(trained, plain).min() > 1


def test_grey_is_for_visible_images_alone(banks):
    """Grey images have three equal channels; infrared ones keep the colours that their files have."""
    batch = Batches(banks, LABELS, tiny_settings(INPUT__GREY=1.0, INPUT__FLIP=0.0), 1)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    spread = {m: (images * std + mean).std(dim=1).mean().item() for m, images in batch.images.items()}
    assert spread[Modality.RGB] < 1e-5 and spread[Modality.IR] > 0.05
    plain = normalise(banks[Modality.IR].batch(batch.positions[Modality.IR]))
    torch.testing.assert_close(batch.images[Modality.IR], plain)


class ScriptedTester:
    """Finds the Rank-1 of a list, one after another, and remembers the weights that it was given."""

    def __init__(self, banks, rank1):
        self.real, self.rank1, self.given = tiny_tester(banks), list(rank1), []
        self.data, self.banks, self.retrieval, self.device = tiny_data(), banks, self.real.retrieval, self.real.device
        self.every = self.real.every

    def is_due(self, epoch, epochs):
        return True

    def __call__(self, model):
        self.given.append(weights(model))
        rank1 = self.rank1.pop(0)
        return Evaluation("scripted", "v2t", (0,), (RankMetrics(np.array([rank1, 1.0]), (1 - rank1) / 2, rank1 / 4),))


def test_best_and_last_checkpoint(model, banks, tmp_path, tiny_clip_file):
    """The best holds the weights and numbers of the epoch with the best test so far, the last those of the last."""
    def checkpoint(which):
        return torch.load(tmp_path / f"prepare_{which}.pth", weights_only=True)

    tester = ScriptedTester(banks, [0.2, 0.6, 0.6, 0.4])
    run = TinyRun(tmp_path)
    train("prepare", model, banks, tiny_settings(4), run, tester)
    best, last = checkpoint("best"), checkpoint("last")
    for content, epoch, rank1 in ((best, 2, 0.6), (last, 4, 0.4)):
        assert content["epoch"] == epoch and same(content["state_dict"], tester.given[epoch - 1])
        assert (content["metrics"]["rank1"], content["metrics"]["mAP"]) == (rank1, (1 - rank1) / 2)
    assert "test data" in best["selected"] and "selected" not in last
    assert not same(best["state_dict"], last["state_dict"])

    # A resumed run knows the best of the run before: a worse epoch does not replace it, a better one does.
    tester = ScriptedTester(banks, [0.5, 0.7])
    resumed = tiny_model(tiny_clip_file)
    run = TinyRun(tmp_path, run.state_file.load()[0])
    train("prepare", resumed, banks, tiny_settings(5), run, tester)
    assert checkpoint("best")["epoch"] == 2 and checkpoint("last")["epoch"] == 5
    train("prepare", resumed, banks, tiny_settings(6), TinyRun(tmp_path, run.state_file.load()[0]), tester)
    assert checkpoint("best")["epoch"] == checkpoint("last")["epoch"] == 6
    assert same(checkpoint("best")["state_dict"], tester.given[-1])


def test_epochs_without_a_test_make_no_best_checkpoint(model, banks, tmp_path):
    """Of three epochs tested every second, the second and the last are candidates; the last checkpoint is the third."""
    given = []

    class Tester(ScriptedTester):
        def is_due(self, epoch, epochs):
            given.append(epoch)
            return epoch in (2, 3)

    train("prepare", model, banks, tiny_settings(3), TinyRun(tmp_path), Tester(banks, [0.6, 0.4]))
    assert given == [1, 2, 3]
    assert torch.load(tmp_path / "prepare_best.pth", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "prepare_last.pth", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize("method", ["cclnet", "pgm"])
def test_images_per_second_count_the_images_of_all_steps(model, banks, tmp_path, monkeypatch, method):
    seen, counted = [], []

    def train_step(model, optimizer, memory, batch, *rest, real=processor.train.train_step):
        seen.append(sum(len(images) for images in batch.images.values()))
        return real(model, optimizer, memory, batch, *rest)

    def end_of_epoch(*arguments, real=processor.train.end_of_epoch):
        counted.append((arguments[5], sum(seen)))
        seen.clear()
        real(*arguments)

    monkeypatch.setattr(processor.train, "train_step", train_step)
    monkeypatch.setattr(processor.train, "end_of_epoch", end_of_epoch)
    settings = tiny_settings(epochs=2, METHOD__NAME=method)
    train("prepare", model, banks, settings, TinyRun(tmp_path), tiny_tester(banks))
    assert len(counted) == 2 and all(images == steps > 0 for images, steps in counted)
