"""N-ULC: equal to the numbers of its released code, through the method that training uses."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loss.links import Links
from loss.method import EpochStart
from loss.nulc import NULC, nearby_clusters
from tests.test_golden_methods import close, rows, same_loss
from tests.tiny import linked_by
from utils.modality import Modality


@pytest.fixture(scope="module")
def g(golden_field):
    return golden_field.load("nulc")


def begun(g, epoch, gradients):
    """The method at the start of the first or second epoch across; memories and links are those of the file."""
    method = linked_by(NULC, Links(g["r2i"], g["i2r"]), cross_epoch=epoch - (epoch - 1) % 2,
                       neighbours=int(g["neighbours"]), gradients=gradients)
    start = EpochStart({"feature": {m: rows(g, f"features_{m.value}") for m in Modality}},
                       {m: g[f"labels_{m.value}"] for m in Modality}, None)
    method.start(start, epoch)
    for m in Modality:
        method.memories[m.value].prototypes = rows(g, f"memory_{m.value}").clone()
    return method


def batch_of(g):
    """The batch of the file, with two views of visible images."""
    positions = {m: np.tile(np.flatnonzero(g[f"labels_{m.value}"] >= 0)[g[f"batch_{m.value}"]],
                            2 if m is Modality.RGB else 1) for m in Modality}
    return SimpleNamespace(positions=positions, labels={m: g[f"labels_{m.value}"][positions[m]] for m in Modality})


@pytest.mark.parametrize("m", Modality)
@pytest.mark.parametrize("across", ["", "cross_"])
def test_shares_and_weights(g, m, across):
    of, labels = m.other if across else m, g[f"labels_{m.value}"]
    found = nearby_clusters(*(rows(g, f"features_{side.value}") for side in (m, of)), g[f"labels_{of.value}"],
                            int(g["neighbours"]))
    np.testing.assert_array_equal(found.sizes, g[f"sizes_{of.value}"])
    own = np.where(labels >= 0, g["r2i" if m is Modality.RGB else "i2r"][labels], -1) if across else labels
    shares, weights = found.soften(np.arange(len(labels)), own, float(g["sharpness"]))
    close(shares, g[f"soft_{across}{m.value}"], 2e-5)
    close(weights, g[f"weight_{across}{m.value}"], 2e-5)


@pytest.mark.parametrize("gradients", ["released", "exact"])
@pytest.mark.parametrize("kind", ["odd", "even"])
def test_step(g, kind, gradients):
    method, batch = begun(g, int(g[f"{kind}_epoch"]) + 1, gradients), batch_of(g)
    x = {m: rows(g, f"rows_{m.value}").requires_grad_() for m in Modality}
    losses = method.losses(x, batch)
    sum(losses.values()).backward()
    for name, weight in (("rgb", 1), ("ir", 1), ("cross", float(g["cross_weight"]))):
        same_loss(losses[name] / weight, g[f"{kind}_loss_{name}"])
    same_loss(sum(losses.values()), g[f"{kind}_loss"])
    method.update(x, batch)
    crossed = Modality.RGB if kind == "odd" else Modality.IR        # its own loss is the one with two gradients
    for m in Modality:
        close(method.prototypes()[m.value], g[f"{kind}_memory_{m.value}_after"], 2e-5)
        if gradients == "released" or m is not crossed:
            close(x[m].grad, g[f"{kind}_gradient_{m.value}"], 1e-4)
        else:
            assert (x[m].grad - rows(g, f"{kind}_gradient_{m.value}")).abs().max() > 1e-3 * x[m].grad.abs().max()


def test_where_no_neighbour_has_a_cluster_the_label_stands_alone():
    """The nearest image is an outlier; with more neighbours than there are images all of them count."""
    rows, labels = torch.eye(5), np.array([0, 0, 0, 1, -1])
    shares, weights = nearby_clusters(rows[[4]], rows, labels, 1).soften(np.array([0, 0]), np.array([1, -1]), 10.0)
    assert shares[0].tolist() == [0, 1] and weights.tolist() == [1, 0]
    shares, weights = nearby_clusters(rows, rows, labels, 9).soften(np.array([0]), np.array([0]), 10.0)
    assert shares.tolist() == [pytest.approx([0.75, 0.25])]         # 3 of 5 and 1 of 5
    assert weights.tolist() == [pytest.approx(np.exp(-10 / 16))]
