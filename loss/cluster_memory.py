"""The cluster memory: one prototype per pseudo label, learned by momentum instead of gradients.

The contrastive loss is that of Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification" (ACCV
2022); swapping prototypes between modalities is CCLNet's. One optimiser step reads

    loss = memory_rgb.loss(x_rgb, y_rgb) + memory_ir.loss(x_ir, y_ir)
    ... backward, optimiser ...
    memory_rgb.update(x_rgb, y_rgb)
    memory_ir.update(x_ir, y_ir)
    swap(memory_rgb, memory_ir, y_rgb, y_ir, scale)
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment


class ClusterMemory:
    """Prototypes of one modality's clusters.

    Args:
        prototypes: (K, D), rows are L2-normalised here; copied.
        temperature: divides the cosine in the loss; momentum: share of the old prototype in an update.
    """

    def __init__(self, prototypes, temperature=0.05, momentum=0.1):
        self.prototypes = F.normalize(prototypes.detach().float(), dim=1)
        self.temperature = temperature
        self.momentum = momentum

    def loss(self, x, labels):
        """Cross entropy of normalise(x) @ prototypes.T / temperature; gradients flow to x alone.

        Args: x: (B, D) features of any length; labels: (B,) cluster of each. Returns: a scalar.
        """
        logits = F.normalize(x.float(), dim=1) @ self.prototypes.T / self.temperature
        return F.cross_entropy(logits, labels.to(logits.device))

    @torch.no_grad()
    def update(self, x, labels):
        """For each sample in batch order: m[y] <- normalise(momentum m[y] + (1 - momentum) normalise(x)).

        Clusters do not touch one another, so all first samples of a cluster are done at once, then all second
        ones, and so on: as many rounds as the most frequent label has samples.

        Args: x: (B, D); labels: (B,), on the host where possible (they decide the order of the rounds).
        """
        clusters, samples, sizes = _rounds(labels.cpu().numpy())
        clusters, samples = (torch.from_numpy(v).to(x.device) for v in (clusters, samples))
        x = F.normalize(x.detach().float(), dim=1).index_select(0, samples) * (1 - self.momentum)
        mixed = self.prototypes.index_select(0, clusters)
        for block in x.split(sizes):
            row = mixed[:len(block)].mul_(self.momentum).add_(block)
            row.div_(torch.linalg.vector_norm(row, dim=1, keepdim=True).clamp_(min=1e-12))
        self.prototypes.index_copy_(0, clusters, mixed)


def _rounds(labels):
    """Round r holds the r-th sample of every label that has one, most frequent labels first.

    Returns: labels without repeats, in that order; sample positions, round after round; the size of each round (list).
    """
    distinct, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    by_count = np.argsort(-count, kind="stable")
    place = np.empty_like(by_count)
    place[by_count] = np.arange(len(by_count))
    order = np.argsort(inverse, kind="stable")
    occurrence = np.empty_like(order)
    occurrence[order] = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    return distinct[by_count], np.lexsort((place[inverse], occurrence)), np.bincount(occurrence).tolist()


class Pairs(NamedTuple):
    """Matched prototypes of two memories."""

    rgb: np.ndarray     # (M,) int64, RGB clusters, ascending
    ir: np.ndarray      # (M,) int64, the IR cluster of each
    cosine: np.ndarray  # (M,) float32, their inner products


@torch.no_grad()
def prototype_similarity(memory_rgb, memory_ir):
    """Inner products of all prototypes: (K_rgb, K_ir)."""
    return memory_rgb.prototypes @ memory_ir.prototypes.T


def match_prototypes(similarity):
    """Hungarian matching (maximum) by the inner products (K_rgb, K_ir): `Pairs`; those below 0 are dropped."""
    similarity = similarity.cpu().numpy()
    rgb, ir = linear_sum_assignment(similarity, maximize=True)
    cosine = similarity[rgb, ir]
    return Pairs(rgb[cosine >= 0], ir[cosine >= 0], cosine[cosine >= 0])


@torch.no_grad()
def swap(memory_rgb, memory_ir, labels_rgb, labels_ir, scale=0.1, order="released", similarity=None):
    """Mix matched prototypes of the two modalities: m_rgb <- normalise(scale m_rgb + (1 - scale) m_ir).

    Only clusters that are in this batch change, each in its own memory.

    Args:
        labels_rgb, labels_ir: (B,) labels of the batch; scale: share that a prototype keeps.
        order: "released": the IR prototype is mixed with the RGB one *after* that has changed, as in the released
            code (an alias there); "simultaneous": both are mixed with the other's old value, as in the paper.
        similarity: `prototype_similarity` before this step's updates, brought up to date in place; a step changes
            few of its rows and columns, so keeping it is far cheaper than computing it again, as None does.
    Returns:
        The `Pairs` as they were matched, before they were mixed.
    """
    if similarity is not None:
        _refresh(similarity, memory_rgb, memory_ir, labels_rgb, labels_ir)
    pairs = match_prototypes(prototype_similarity(memory_rgb, memory_ir) if similarity is None else similarity)
    in_rgb = np.isin(pairs.rgb, labels_rgb.cpu().numpy())
    in_ir = np.isin(pairs.ir, labels_ir.cpu().numpy())
    source = memory_rgb.prototypes if order == "released" else memory_rgb.prototypes.clone()
    _mix(memory_rgb.prototypes, pairs.rgb[in_rgb], memory_ir.prototypes, pairs.ir[in_rgb], scale)
    _mix(memory_ir.prototypes, pairs.ir[in_ir], source, pairs.rgb[in_ir], scale)
    if similarity is not None:
        _refresh(similarity, memory_rgb, memory_ir, labels_rgb, labels_ir)
    return pairs


def _refresh(similarity, memory_rgb, memory_ir, labels_rgb, labels_ir):
    """Compute the rows of the clusters labels_rgb and the columns of the clusters labels_ir anew, in place."""
    rgb, ir = (torch.unique(y).to(similarity.device) for y in (labels_rgb, labels_ir))
    similarity[rgb] = memory_rgb.prototypes[rgb] @ memory_ir.prototypes.T
    similarity[:, ir] = memory_rgb.prototypes @ memory_ir.prototypes[ir].T


def _mix(target, rows, source, source_rows, scale):
    rows, source_rows = (torch.from_numpy(r).to(target.device) for r in (rows, source_rows))
    target[rows] = F.normalize(scale * target[rows] + (1 - scale) * source[source_rows], dim=1)
