"""CCLNet's memories against loops over samples and clusters: losses, updates, links, and what swapping may touch."""
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


def unit(rows, seed=0, dim=DIM):
    """Rows of unit length."""
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def draw(seed=0, clusters=(4, 3)):
    """Twelve features of any length, Modality -> (12, DIM), and a batch with labels of so many clusters."""
    generator = torch.Generator().manual_seed(seed)
    x = {m: 3 * torch.randn(12, DIM, generator=generator) for m in Modality}
    labels = {m: torch.randint(0, k, (12,), generator=generator).numpy() for m, k in zip(Modality, clusters)}
    return x, SimpleNamespace(labels=labels, positions=labels)


def naive_update(rows, x, labels, momentum=MOMENTUM):
    rows = rows.clone()
    for sample, label in zip(F.normalize(x, dim=1), labels):
        rows[label] = F.normalize(momentum * rows[label] + (1 - momentum) * sample, dim=0)
    return rows


def naive_swap(rgb, ir, links, labels, order):
    """Swap cluster by cluster."""
    new_rgb, new_ir, partner = rgb.clone(), ir.clone(), links.rgb_to_ir
    for r in {r for r in labels[Modality.RGB] if partner[r] >= 0}:
        new_rgb[r] = F.normalize(SCALE * rgb[r] + (1 - SCALE) * ir[partner[r]], dim=0)
    others, partner = rgb if order == "simultaneous" else new_rgb, links.ir_to_rgb
    for i in {i for i in labels[Modality.IR] if partner[i] >= 0}:
        new_ir[i] = F.normalize(SCALE * ir[i] + (1 - SCALE) * others[partner[i]], dim=0)
    return new_rgb, new_ir


def test_means_of_clusters_of_two_images_none_and_one():
    means = cluster_means(torch.tensor([[1.0], [9.0], [5.0], [3.0]]), np.array([0, -1, 2, 0]))
    assert means.tolist() == [[2], [0], [5]]


@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_update_is_sequential_in_batch_order(momentum):
    start = unit(7)
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


@pytest.mark.parametrize("cross_epoch, order, clusters", [
    (2, "released", (7, 5)), (2, "simultaneous", (5, 7)), (2, "released", (1, 4)), (3, "released", (7, 5))])
def test_update_moves_the_prototypes_then_swaps_them(cross_epoch, order, clusters):
    expected, linked = [unit(k, seed) for seed, k in enumerate(clusters)], 0
    method = CCLNet(temperature=TEMPERATURE, momentum=MOMENTUM, cross_epoch=cross_epoch, swap_scale=SCALE,
                    swap_order=order)
    method.start(epoch_of(dict(zip(Modality, expected))), 2)
    for step in range(3):
        x, batch = draw(step, clusters)
        expected = [naive_update(rows, x[m], batch.labels[m]) for m, rows in zip(Modality, expected)]
        cosines = (expected[0] @ expected[1].T).numpy()
        links = hungarian(cosines)
        if cross_epoch == 2:
            expected = naive_swap(*expected, links, batch.labels, order)
        assert method.update(x, batch) == {}
        found = method.links()                      # as the swap will use them, which is still due
        assert list(zip(found.rgb, found.ir)) == [(r, i) for r, i in enumerate(links.rgb_to_ir) if i >= 0]
        np.testing.assert_allclose(found.similarity, cosines[found.rgb, found.ir], atol=1e-5)
        for rows, wanted in zip(method.prototypes().values(), expected):
            torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-4)
        linked += len(found.rgb)
    assert linked, "the drawn prototypes should be linked somewhere"


@pytest.mark.parametrize("order", ["released", "simultaneous"])
def test_links_need_not_be_one_to_one(order):
    """Each cluster of the batch is mixed with its own partner, whoever else has that partner or is its own."""
    rgb, ir = unit(4), unit(3, 1)
    links = Links(np.array([1, 1, 0, -1]), np.array([3, 0, -1]))    # RGB 0 and 1 share IR 1, whose own partner is RGB 0
    labels = {Modality.RGB: np.array([0, 1, 1, 3, 0]), Modality.IR: np.array([2, 1, 0, 0, 1])}      # RGB 2 is not there
    expected = naive_swap(rgb, ir, links, labels, order)
    swap(rgb, ir, links, labels, SCALE, order)
    torch.testing.assert_close((rgb, ir), expected)


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
