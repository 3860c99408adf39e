"""Cluster quality by hand-built cases, and the proof that identities stay out of training."""
import json
import time

import numpy as np
import pytest
import torch

from clustering.quality import cluster_quality, diagnose, known_persons, majority, matching_accuracy
from data.records import ImageSet
from processor import train as training
from processor.run.events import flat_numbers
from tests.tiny import IMAGES, TinyRun, tiny_model, tiny_settings, tiny_tester
from utils.modality import Modality

PERSONS = np.repeat([7, 8, 9], 4)


def test_perfect_clusters():
    quality = cluster_quality(np.repeat([2, 0, 1], 4), PERSONS)
    assert quality == {"ari": 1, "nmi": pytest.approx(1), "purity": 1, "clusters_per_person": 1, "outlier_share": 0}


def test_worst_clusters():
    quality = cluster_quality(np.tile([0, 1, 2, 3], 3), PERSONS)         # every cluster shows every person once
    assert quality["ari"] < 0 and quality["nmi"] == pytest.approx(0, abs=1e-9)
    assert quality["purity"] == pytest.approx(1 / 3) and quality["clusters_per_person"] == pytest.approx(4 / 3)


def test_outliers_count_in_their_share_alone():
    labels = np.repeat([0, 1, -1], 4)
    assert cluster_quality(labels, PERSONS) == {"ari": 1, "nmi": pytest.approx(1), "purity": 1,
                                                "clusters_per_person": pytest.approx(2 / 3),
                                                "outlier_share": pytest.approx(1 / 3)}


def test_majority():
    persons, counts = majority(np.array([0, 0, 0, 1, 1, -1]), np.array([5, 5, 4, 4, 3, 9]))
    assert persons.tolist() == [5, 3] and counts.tolist() == [2, 1]


def test_matching_accuracy():
    labels = {Modality.RGB: np.repeat([0, 1, 2], 4), Modality.IR: np.repeat([2, 1, 0], 4)}
    persons = {m: PERSONS for m in Modality}
    pairs = np.array([0, 1, 2]), np.array([2, 1, 0])
    assert matching_accuracy(pairs, labels, persons) == 1
    assert matching_accuracy((pairs[0], pairs[0]), labels, persons) == pytest.approx(1 / 3)
    assert matching_accuracy((np.array([], int),) * 2, labels, persons) == 0
    assert diagnose(labels, pairs, persons)["matching_accuracy"] == 1 and diagnose(labels, pairs, None) == {}


def test_persons_that_nobody_knows():
    known = ImageSet.from_rows(Modality.RGB, [("a", 1, 1), ("b", 2, 1)])
    unknown = ImageSet.from_rows(Modality.IR, [("a", 0, 1), ("b", 0, 1)])
    assert known_persons({Modality.RGB: known, Modality.IR: unknown}) is None
    assert known_persons({Modality.RGB: known})[Modality.RGB].tolist() == [1, 2]


def test_flat_numbers():
    assert dict(flat_numbers({"a": 1, "b": {"c": 2.5, "d": "text", "e": [1]}, "f": True})) == {"a": 1, "b/c": 2.5}


def train(folder, clip_file, banks, order, **changes):
    """train_prepare.py's stage with the identities in an order: its checkpoint, labels and metrics."""
    model = tiny_model(clip_file)
    training.train("prepare", model, banks, tiny_settings(epochs=2, MEMORY__SWAP_EPOCH=2, **changes), TinyRun(folder),
                   tiny_tester(banks, order=order))
    labels = {path.name: path.read_bytes() for path in (folder / "pseudo_labels").glob("*.npy")}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.load(folder / "prepare_last.pth", weights_only=True)["state_dict"], labels, metrics


def test_identities_never_reach_training(tiny_clip_file, banks, tmp_path):
    """Shuffled identities change the diagnosis, and not a bit of weights, labels and losses."""
    shuffled = np.random.default_rng(0).permutation(IMAGES)
    weights, labels, metrics = train(tmp_path / "a", tiny_clip_file, banks, np.arange(IMAGES))
    others, other_labels, other_metrics = train(tmp_path / "b", tiny_clip_file, banks, shuffled)
    assert all(torch.equal(weights[k], others[k]) for k in weights) and labels == other_labels and len(labels) == 2
    for row, other in zip(metrics, other_metrics):
        assert row["loss_rgb"] == other["loss_rgb"] and row["matched_similarity"] == other["matched_similarity"]
        assert row["ari_rgb"] > other["ari_rgb"] and row["purity_ir"] > other["purity_ir"]
    assert metrics[0]["matched_similarity"] == 0 < metrics[1]["matched_similarity"] <= 1
    assert len(list((tmp_path / "a/tensorboard/prepare").glob("events.*"))) == 1


@pytest.mark.parametrize("method", ["pgm", "rpnr"])
def test_identities_never_reach_the_other_methods(tiny_clip_file, banks, tmp_path, method):
    changes = {"MEMORY__METHOD": method, "MEMORY__MATCH_BY": "projection"}
    shuffled = np.random.default_rng(0).permutation(IMAGES)
    weights, labels, metrics = train(tmp_path / "a", tiny_clip_file, banks, np.arange(IMAGES), **changes)
    others, other_labels, other_metrics = train(tmp_path / "b", tiny_clip_file, banks, shuffled, **changes)
    assert all(torch.equal(weights[k], others[k]) for k in weights) and labels == other_labels
    assert metrics[1]["loss_cross"] == other_metrics[1]["loss_cross"] > 0
    assert metrics[1]["ari_rgb"] > other_metrics[1]["ari_rgb"]


def test_event_files_hold_the_numbers(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from processor.run.events import EventLog
    for first in (1, 2):                   # the second log goes on with an epoch that had been written already
        monkeypatch.setattr(time, "time", lambda now=1e9 + first: now)     # files are read in this order
        log = EventLog(tmp_path)
        for epoch in (first, first + 1):
            log.add("prepare", epoch, {"loss": 1.0 / (epoch + first), "test": {"rank1": 0.5}}, {"size": np.arange(9)})
    events = EventAccumulator(str(tmp_path / "prepare"))
    events.Reload()
    assert {"loss", "test/rank1"} <= set(events.Tags()["scalars"]) and "size" in events.Tags()["histograms"]
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
    assert events.Scalars("loss")[1].value == 0.25
