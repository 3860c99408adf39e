"""SDCL and its label unification: equal to the numbers of the released code, through the classes that training uses."""
import numpy as np
import pytest
import torch

from loss.method import EpochStart
from loss.methods import METHODS
from loss.unify import frequencies, most_frequent, votes
from tests.golden_field_files import FOLDER
from utils.modality import Modality

RGB, IR = Modality


def load(name):
    return np.load(FOLDER / f"{name}.npz", allow_pickle=False)


def close(found, expected, share):
    """Compare arrays up to a share of the largest entry."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=share * float(np.abs(expected).max()))


def both_depths(g, side):
    return torch.stack([torch.from_numpy(g[f"{depth}_{side}"]) for depth in ("deep", "shallow")], dim=1)


@pytest.mark.parametrize("name", ["unify_sysu", "unify_regdb"])
def test_unification(name):
    """Of equally frequent clusters the first one wins here; `torch.topk` took others."""
    g = load(name)
    rows = {m: both_depths(g, m.value) for m in Modality}
    top, labels = int(g["top"]), {m: g[f"labels_{m.value}"] for m in Modality}
    deep, shallow = votes(*rows.values(), labels[IR], top)
    np.testing.assert_array_equal(frequencies(deep, shallow), g["counts"])
    np.testing.assert_array_equal(deep[np.arange(len(deep)), g["chosen_rank"]], g["vote"])
    np.testing.assert_array_equal(most_frequent(deep, shallow), g["vote_first"])
    for method, setting in (("unify", "cross_epoch"),):
        method = METHODS[method](top_votes=top, momentum=float(g["momentum"]), **{setting: 3})
        assert method.start(EpochStart({"depths": rows}, labels, None), 2) is labels and method.links() is None
        found = method.start(EpochStart({"depths": rows}, labels, None), 3)
        unified = g["first_labels_rgb_unified"]
        np.testing.assert_array_equal(found[RGB], np.where(labels[RGB] < 0, -1, unified))
        np.testing.assert_array_equal(np.flatnonzero(found[RGB] >= 0), g["first_kept_rgb"])
        np.testing.assert_array_equal(np.flatnonzero(found[IR] >= 0), g["kept_ir"])
        assert method.links().ir.tolist() == sorted(set(unified[g["first_kept_rgb"]]))
        close(method.prototypes()["shared"], g["first_memory_deep"], 2e-5)
        close(method.prototypes()["shared_shallow"], g["first_memory_shallow"], 2e-5)
