"""CCLNet's memories against loops over samples and clusters: losses, updates, links, and what swapping may touch."""
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss.cclnet import CCLNet, swap
from loss.cluster_memory import ClusterMemory, HardMemory, cluster_means
from loss.links import Links, hungarian, listed
from tests.tiny import epoch_of
from utils.modality import Modality

TEMPERATURE, MOMENTUM, SCALE, DIM = 0.05, 0.2, 0.1, 16


def prototypes(clusters_rgb=7, clusters_ir=5):
    """Unit rows: [(K_rgb, DIM), (K_ir, DIM)]."""
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(k, DIM, generator=generator), dim=1) for k in (clusters_rgb, clusters_ir)]


def begun(swaps, order="released", clusters=(7, 5)):
    """CCLNet at the start of an epoch in which it swaps, or not."""
    method = CCLNet(temperature=TEMPERATURE, momentum=MOMENTUM, cross_epoch=2 if swaps else 3, swap_scale=SCALE,
                    swap_order=order)
    method.start(epoch_of(dict(zip(Modality, prototypes(*clusters)))), 2)
    return method


def draw(clusters=(7, 5), size=12, seed=0):
    """Features of any length, Modality -> (size, DIM), and a batch with their labels."""
    generator = torch.Generator().manual_seed(seed)
    return ({m: 3 * torch.randn(size, DIM, generator=generator) for m in Modality}, SimpleNamespace(
        labels={m: torch.randint(0, k, (size,), generator=generator).numpy() for m, k in zip(Modality, clusters)}))


def naive_update(rows, x, labels, momentum=MOMENTUM):
    rows = rows.clone()
    for sample, label in zip(F.normalize(x, dim=1), labels):
        rows[label] = F.normalize(momentum * rows[label] + (1 - momentum) * sample, dim=0)
    return rows


def naive_swap(rgb, ir, pairs, labels, simultaneous):
    """Swap pair by pair, as the released code does."""
    rgb, ir, old_rgb = rgb.clone(), ir.clone(), rgb.clone()
    for r, i in pairs:
        old = ir[i].clone()
        if r in labels[Modality.RGB]:
            rgb[r] = F.normalize(SCALE * rgb[r] + (1 - SCALE) * old, dim=0)
        if i in labels[Modality.IR]:
            ir[i] = F.normalize(SCALE * old + (1 - SCALE) * (old_rgb if simultaneous else rgb)[r], dim=0)
    return rgb, ir


def pair_list(links):
    return [(r, i) for r, i in enumerate(links.rgb_to_ir.tolist()) if i >= 0]


def test_means_of_clusters_of_two_images_none_and_one():
    means = cluster_means(torch.tensor([[1.0], [9.0], [5.0], [3.0]]), np.array([0, -1, 2, 0]))
    assert means.tolist() == [[2], [0], [5]]


@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_update_is_sequential_in_batch_order(momentum):
    start = prototypes()[0]
    memory, generator = ClusterMemory(3 * start, TEMPERATURE, momentum), torch.Generator().manual_seed(100)
    x, labels = torch.randn(40, DIM, generator=generator), torch.randint(0, 6, (40,), generator=generator)
    memory.update(x, labels)
    torch.testing.assert_close(memory.prototypes, naive_update(start, x, labels, momentum))
    torch.testing.assert_close(memory.prototypes[6], start[6])      # no sample of it
    torch.testing.assert_close(memory.prototypes.norm(dim=1), torch.ones(7))


def test_a_hard_prototype_follows_the_first_of_equally_hard_samples():
    start = torch.eye(3)[:2]
    hard = HardMemory(start, 0.05, 0.5)
    x = torch.tensor([[0.0, 3.0, 4.0], [4.0, 0.0, 3.0], [0.0, 4.0, 3.0], [0.0, 1.0, 0.0]])
    hard.update(x, np.array([0, 0, 0, 1]))          # samples 0 and 2 are orthogonal to prototype 0
    torch.testing.assert_close(hard.prototypes[0], F.normalize(torch.tensor([0.5, 0.3, 0.4]), dim=0))
    torch.testing.assert_close(hard.prototypes[1], start[1])
    hard.update(torch.full((2, 3), torch.nan), np.array([0, 1]))
    assert torch.isnan(hard.prototypes).all()       # and no index is out of range: the check of the losses names images


@pytest.mark.parametrize("swaps, order, clusters", [
    (True, "released", (7, 5)), (True, "simultaneous", (5, 7)), (True, "released", (1, 4)),
    (False, "released", (7, 5))])
def test_update_moves_the_prototypes_then_swaps_them(clusters, order, swaps):
    method, expected, linked = begun(swaps, order, clusters), prototypes(*clusters), 0
    for step in range(3):
        x, batch = draw(clusters, seed=step)
        expected = [naive_update(rows, x[m], batch.labels[m]) for m, rows in zip(Modality, expected)]
        pairs = pair_list(hungarian((expected[0] @ expected[1].T).numpy()))
        cosines = [float(expected[0][r] @ expected[1][i]) for r, i in pairs]
        if swaps:
            expected = naive_swap(*expected, pairs, batch.labels, order == "simultaneous")
        assert method.update(x, batch) == {}
        found = method.links()                      # as the swap will use them, which is still due
        assert list(zip(found.rgb.tolist(), found.ir.tolist())) == pairs
        np.testing.assert_allclose(found.similarity, cosines, atol=1e-5)
        for rows, wanted in zip(method.prototypes().values(), expected):
            torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-4)
        linked += len(pairs)
    assert linked, "the drawn prototypes should be linked somewhere"


@pytest.mark.parametrize("order", ["released", "simultaneous"])
def test_links_need_not_be_one_to_one(order):
    """Each cluster of the batch is mixed with its own partner, whoever else has that partner or is its own."""
    rgb, ir = prototypes(4, 3)
    links = Links(np.array([1, 1, 0, -1]), np.array([3, 0, -1]))    # RGB 0 and 1 share IR 1, whose own partner is RGB 0
    labels = {Modality.RGB: np.array([0, 1, 1, 3, 0]), Modality.IR: np.array([2, 1, 0, 0, 1])}
    mixed = {0: 1, 1: 1}                                            # 2 is not in the batch, 3 has no partner
    new_rgb = torch.stack([F.normalize(SCALE * row + (1 - SCALE) * ir[mixed[r]], dim=0) if r in mixed else row
                           for r, row in enumerate(rgb)])
    source = new_rgb if order == "released" else rgb.clone()
    new_ir = torch.stack([F.normalize(SCALE * row + (1 - SCALE) * source[partner], dim=0) if partner >= 0 else row
                          for row, partner in zip(ir, links.ir_to_rgb)])
    swap(rgb, ir, links, labels, SCALE, order)
    torch.testing.assert_close(rgb, new_rgb)
    torch.testing.assert_close(ir, new_ir)


def test_hungarian_links_are_mutual_and_maximise_the_sum():
    similarity = np.random.default_rng(0).uniform(0.1, 1, (4, 3))
    links = hungarian(similarity)
    assert [links.rgb_to_ir[r] for r in links.ir_to_rgb] == [0, 1, 2] and sorted(links.rgb_to_ir) == [-1, 0, 1, 2]
    best = max(similarity[list(rows), range(3)].sum() for rows in itertools.permutations(range(4), 3))
    assert similarity[links.ir_to_rgb, range(3)].sum() == pytest.approx(best)


@pytest.mark.parametrize("similarity, expected", [
    ([[0.0], [-1.0]], ([0, -1], [0])),                          # exactly 0 links
    ([[-1.0, -0.6]], ([-1], [-1, -1])),                         # one below 0 does not
    ([[-1.0, 0.8], [-0.7, 0.9]], ([1, -1], [-1, 0]))])          # the rest of a full assignment
def test_links_below_zero_are_dropped(similarity, expected):
    links = hungarian(np.array(similarity))
    assert (links.rgb_to_ir.tolist(), links.ir_to_rgb.tolist()) == expected
    assert links.rgb_to_ir.dtype == links.ir_to_rgb.dtype == np.int64


def test_each_link_is_listed_once_from_whichever_side_it_is():
    cosines = np.arange(12).reshape(4, 3)
    found = listed(Links(np.array([1, 1, 0, -1]), np.array([-1, 0, 0])), cosines)
    assert list(zip(found.rgb.tolist(), found.ir.tolist())) == [(0, 1), (0, 2), (1, 1), (2, 0)]
    assert found.similarity.tolist() == [1, 2, 4, 6]
    assert [len(values) for values in listed(Links(np.full(4, -1), np.full(3, -1)), cosines)] == [0, 0, 0]


@pytest.mark.parametrize("kind", [ClusterMemory, HardMemory])
def test_outliers_are_refused(kind):
    memory = kind(torch.eye(3), 0.05, 0.1)
    with pytest.raises(ValueError, match="hold -1"):
        memory.update(torch.ones(2, 3), np.array([0, -1]))
    assert torch.equal(memory.prototypes, torch.eye(3))
