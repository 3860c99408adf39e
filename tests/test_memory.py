"""CCLNet's memories where the golden numbers do not reach: swaps, ties, links below 0, outliers."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss.cclnet import CCLNet
from loss.cluster_memory import ClusterMemory, HardMemory, cluster_means
from loss.links import Links, hungarian, linked_clusters
from tests.tiny import epoch_of, linked_by
from utils.errors import UserError
from utils.modality import Modality

SCALE, DIM = 0.1, 16


def unit(rows, seed=0, dim=DIM):
    """Rows of unit length."""
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def draw(seed=0):
    """Twelve features of any length, Modality -> (12, DIM), and a batch with labels of 4 and 3 clusters."""
    generator = torch.Generator().manual_seed(seed)
    x = {m: 3 * torch.randn(12, DIM, generator=generator) for m in Modality}
    labels = {m: torch.randint(0, k, (12,), generator=generator).numpy() for m, k in zip(Modality, (4, 3))}
    return x, SimpleNamespace(labels=labels, positions=labels)


@pytest.mark.parametrize("order", ["released", "simultaneous"])
def test_linked_prototypes_are_swapped(order):
    """Each cluster of the batch is mixed with its own partner, whoever else has that partner or is its own."""
    rgb, ir, rows = unit(4), unit(3, 1), [0, 1]     # of the batch, with a partner, of either modality
    links = Links(np.array([1, 1, 0, -1]), np.array([3, 0, -1]))    # RGB 0 and 1 share IR 1, whose own partner is RGB 0
    labels = {Modality.RGB: np.array([0, 1, 1, 3, 0]), Modality.IR: np.array([2, 1, 0, 0, 1])}      # RGB 2 is not there
    method = linked_by(CCLNet, links, momentum=1.0, cross_epoch=2, swap_scale=SCALE, swap_order=order)
    method.start(epoch_of({Modality.RGB: rgb, Modality.IR: ir}), 2)
    assert method.update({m: torch.ones(5, DIM) for m in Modality}, SimpleNamespace(labels=labels)) == {}
    new_rgb, new_ir = rgb.clone(), ir.clone()
    new_rgb[rows] = F.normalize(SCALE * rgb[rows] + (1 - SCALE) * ir[1], dim=1)
    others = rgb if order == "simultaneous" else new_rgb
    new_ir[rows] = F.normalize(SCALE * ir[rows] + (1 - SCALE) * others[[3, 0]], dim=1)
    torch.testing.assert_close(method.prototypes(), {"rgb": new_rgb, "ir": new_ir})


def test_means_of_clusters_of_two_images_none_and_one():
    means = cluster_means(torch.tensor([[1.0], [9.0], [5.0], [3.0]]), np.array([0, -1, 2, 0]))
    assert means.tolist() == [[2], [0], [5]]


def test_a_hard_prototype_follows_the_first_of_equally_hard_samples():
    start = torch.eye(3)[:2]
    hard = HardMemory(start, 0.05, 0.5)
    x = torch.tensor([[0.0, 3.0, 4.0], [4.0, 0.0, 3.0], [0.0, 4.0, 3.0], [0.0, 1.0, 0.0]])
    hard.update(x, np.array([0, 0, 0, 1]))          # samples 0 and 2 are orthogonal to prototype 0
    torch.testing.assert_close(hard.prototypes[0], F.normalize(torch.tensor([0.5, 0.3, 0.4]), dim=0))
    torch.testing.assert_close(hard.prototypes[1], start[1])
    hard.update(torch.full((2, 3), torch.nan), np.array([0, 1]))
    assert torch.isnan(hard.prototypes).all()       # and no index is out of range: the check of the losses names images


@pytest.mark.parametrize("similarity, expected", [
    ([[0.0], [-1.0]], ([0, -1], [0])),                          # exactly 0 links
    ([[-1.0, -0.6]], ([-1], [-1, -1])),                         # one below 0 does not
    ([[-1.0, 0.8], [-0.7, 0.9]], ([1, -1], [-1, 0]))])          # the rest of a full assignment
def test_links_below_zero_are_dropped(similarity, expected):
    links = hungarian(np.array(similarity))
    assert (links.rgb_to_ir.tolist(), links.ir_to_rgb.tolist()) == expected
    assert links.rgb_to_ir.dtype == links.ir_to_rgb.dtype == np.int64


def test_each_link_is_listed_once_from_whichever_side_it_is():
    """With the cosine of its clusters' centres; links of clusters without images are left out."""
    labels = {Modality.RGB: np.array([0, 1, 2, -1]), Modality.IR: np.array([0, 1, 2])}
    centres = {Modality.RGB: torch.tensor([[2.0, 0], [0, 1], [1, 1]]),
               Modality.IR: torch.tensor([[1.0, 1], [0, -3], [1, 0]])}
    links = Links(np.array([1, 1, 0, -1]), np.array([-1, 0, 0]))
    found = linked_clusters(links, labels, centres)
    assert list(zip(found.rgb.tolist(), found.ir.tolist())) == [(0, 1), (0, 2), (1, 1), (2, 0)]
    assert found.similarity == pytest.approx([0, 1, -1, 1])
    few = linked_clusters(links, {Modality.RGB: np.array([0, 1]), Modality.IR: np.array([0, 2])}, centres)
    assert (few.rgb.tolist(), few.ir.tolist()) == ([0], [2])
    assert [len(side) for side in linked_clusters(Links(*[np.full(3, -1)] * 2), labels, centres)] == [0, 0, 0]
    for wrong in (Links(np.array([1, 1]), np.array([-1, 0, 0])), Links(np.array([1, 1, 3]), np.array([-1, 0, 0]))):
        with pytest.raises(UserError, match="expected one for each of 3, -1 or below 3"):
            linked_clusters(wrong, labels, centres)


@pytest.mark.parametrize("kind", [ClusterMemory, HardMemory])
def test_outliers_are_refused(kind):
    memory = kind(torch.eye(3), 0.05, 0.1)
    with pytest.raises(ValueError, match="hold -1"):
        memory.update(torch.ones(2, 3), np.array([0, -1]))
    assert torch.equal(memory.prototypes, torch.eye(3))
