"""Cluster quality by hand-built cases, and the proof that identities stay out of training."""
import numpy as np
import pytest
import torch

from clustering.quality import cluster_quality, diagnose, link_accuracy, link_numbers
from loss.links import LinkedClusters
from processor.train import train
from tests.tiny import IMAGES, TinyRun, tiny_model, tiny_settings, tiny_tester
from utils.modality import Modality

PERSONS = np.repeat([7, 8, 9], 4)


@pytest.mark.parametrize("labels, expected", [      # right; each cluster shows each person once; a person of outliers
    (np.repeat([2, 0, 1], 4), (1, 1, 1, 1, 0)), (np.tile([0, 1, 2, 3], 3), (-12 / 43, 0, 1 / 3, 4 / 3, 0)),
    (np.repeat([0, 1, -1], 4), (1, 1, 1, 2 / 3, 1 / 3))])
def test_cluster_quality(labels, expected):
    names = ("ari", "nmi", "purity", "clusters_per_person", "outlier_share")
    assert cluster_quality(labels, PERSONS) == pytest.approx(dict(zip(names, expected)), abs=1e-9)


def test_links_between_clusters():
    labels = {Modality.RGB: np.repeat([0, 1, 2], 4), Modality.IR: np.repeat([2, 1, 0], 4)}
    persons, similarity = {m: PERSONS for m in Modality}, np.array([0.5, 0.7, 0.9])
    right = LinkedClusters(np.array([0, 1, 2]), np.array([2, 1, 0]), similarity)
    assert link_accuracy(right, labels, persons) == 1 == diagnose(labels, right, persons)["link_accuracy"]
    assert link_accuracy(right._replace(ir=right.rgb), labels, persons) == pytest.approx(1 / 3)
    none = LinkedClusters(*[np.array([], int)] * 3)
    assert link_accuracy(none, labels, persons) == 0 == sum(link_numbers(none).values())
    assert diagnose(labels, right, None) == {} == link_numbers(None)
    assert "link_accuracy" not in diagnose(labels, None, persons)
    assert link_numbers(right._replace(ir=np.array([1, 1, 0]))) == {
        "links": 3, "links_per_cluster": 6 / 5, "links_per_cluster_max": 2, "link_similarity": pytest.approx(0.7)}


def test_identities_never_reach_training(tiny_clip_file, banks, tmp_path):
    """Shuffled identities change the diagnosis, and not a bit of weights, labels and losses."""
    def trained(order):
        run, settings = TinyRun(tmp_path), tiny_settings(1, METHOD__CROSS_EPOCH=1, METHOD__NAME="rpnr",
                                                         METHOD__LINK_BY="projection")
        state = train("prepare", tiny_model(tiny_clip_file), banks, settings, run, tiny_tester(banks, order=order))
        return state.model.state_dict(), state.labels, run.history[0]

    weights, labels, row = trained(np.arange(IMAGES))
    others, other_labels, other = trained(np.random.default_rng(0).permutation(IMAGES))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert all(np.array_equal(labels[m], other_labels[m]) for m in Modality)
    same = [name for name in row if name.startswith("loss_") or name == "link_similarity"]
    assert len(same) > 2 and all(row[name] == other[name] for name in same)
    assert row["ari_rgb"] > other["ari_rgb"] and row["purity_ir"] > other["purity_ir"]
