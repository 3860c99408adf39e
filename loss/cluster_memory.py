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
            row = mixed[:len(block)]
            torch.add(block, row, alpha=self.momentum, out=row)
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


class PrototypeSimilarity:
    """Inner products of all prototypes of two memories, kept from swap to swap.

    A step changes few prototypes, so most of the products stay; computing all of them costs more than the rest of a
    step.
    """

    def __init__(self, memory_rgb, memory_ir):
        self.memories = memory_rgb, memory_ir
        self.values = memory_rgb.prototypes @ memory_ir.prototypes.T      # (K_rgb, K_ir)
        self.swapped = np.empty(0, np.int64), np.empty(0, np.int64)       # clusters that changed after the last refresh

    def refresh(self, labels_rgb, labels_ir):
        """The values, (K_rgb, K_ir), where no clusters but those of this batch (B,) and of the last have changed."""
        batch = tuple(np.unique(labels.cpu().numpy()) for labels in (labels_rgb, labels_ir))
        rgb, ir = (torch.from_numpy(np.union1d(*pair)).to(self.values.device) for pair in zip(batch, self.swapped))
        of_rgb, of_ir = (memory.prototypes for memory in self.memories)
        self.values.index_copy_(0, rgb, of_rgb.index_select(0, rgb) @ of_ir.T)
        self.values.index_copy_(1, ir, (of_ir.index_select(0, ir) @ of_rgb.T).T)
        self.swapped = batch                # by what comes after the refresh
        return self.values

    def state_dict(self):
        """Products computed anew could differ in the last bits, so they are kept."""
        return {"values": self.values, "swapped": [torch.from_numpy(clusters) for clusters in self.swapped]}

    def load_state_dict(self, state):
        """Go on where the one that gave `state` was."""
        self.values = state["values"].to(self.values.device)
        self.swapped = tuple(clusters.cpu().numpy() for clusters in state["swapped"])


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
        similarity: the memories' `PrototypeSimilarity`, the same in every step; None computes all products.
    Returns:
        The `Pairs` as they were matched, before they were mixed.
    """
    similarity = similarity or PrototypeSimilarity(memory_rgb, memory_ir)
    pairs = match_prototypes(similarity.refresh(labels_rgb, labels_ir))
    in_rgb = np.isin(pairs.rgb, labels_rgb.cpu().numpy())
    in_ir = np.isin(pairs.ir, labels_ir.cpu().numpy())
    source = memory_rgb.prototypes if order == "released" else memory_rgb.prototypes.clone()
    _mix(memory_rgb.prototypes, pairs.rgb[in_rgb], memory_ir.prototypes, pairs.ir[in_rgb], scale)
    _mix(memory_ir.prototypes, pairs.ir[in_ir], source, pairs.rgb[in_ir], scale)
    return pairs


def _mix(target, rows, source, source_rows, scale):
    rows, source_rows = (torch.from_numpy(r).to(target.device) for r in (rows, source_rows))
    target[rows] = F.normalize(scale * target[rows] + (1 - scale) * source[source_rows], dim=1)
