"""The cluster memory: one prototype per pseudo label, learned by momentum instead of gradients.

The contrastive loss is that of Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification" (ACCV
2022); swapping prototypes between modalities is CCLNet's. One optimiser step reads

    loss = memory_rgb.loss(x_rgb, y_rgb) + memory_ir.loss(x_ir, y_ir)
    ... backward, optimiser ...
    memory_rgb.update(x_rgb, y_rgb)
    memory_ir.update(x_ir, y_ir)
    swap(memory_rgb, memory_ir, y_rgb, y_ir, scale)
"""
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


@torch.no_grad()
def match_prototypes(memory_rgb, memory_ir):
    """Hungarian matching (maximum) of all prototypes by inner product; pairs below 0 are dropped.

    Returns: two (M,) int64 arrays, RGB clusters ascending and the IR cluster of each.
    """
    similarity = (memory_rgb.prototypes @ memory_ir.prototypes.T).cpu().numpy()
    rgb, ir = linear_sum_assignment(similarity, maximize=True)
    keep = similarity[rgb, ir] >= 0
    return rgb[keep], ir[keep]


@torch.no_grad()
def swap(memory_rgb, memory_ir, labels_rgb, labels_ir, scale=0.1, order="released"):
    """Mix matched prototypes of the two modalities: m_rgb <- normalise(scale m_rgb + (1 - scale) m_ir).

    Only clusters that are in this batch change, each in its own memory.

    Args:
        labels_rgb, labels_ir: (B,) labels of the batch; scale: share that a prototype keeps.
        order: "released": the IR prototype is mixed with the RGB one *after* that has changed, as in the released
            code (an alias there); "simultaneous": both are mixed with the other's old value, as in the paper.
    Returns:
        The pairs of `match_prototypes`.
    """
    rgb, ir = match_prototypes(memory_rgb, memory_ir)
    in_rgb = np.isin(rgb, labels_rgb.cpu().numpy())
    in_ir = np.isin(ir, labels_ir.cpu().numpy())
    source = memory_rgb.prototypes if order == "released" else memory_rgb.prototypes.clone()
    _mix(memory_rgb.prototypes, rgb[in_rgb], memory_ir.prototypes, ir[in_rgb], scale)
    _mix(memory_ir.prototypes, ir[in_ir], source, rgb[in_ir], scale)
    return rgb, ir


def _mix(target, rows, source, source_rows, scale):
    rows, source_rows = (torch.from_numpy(r).to(target.device) for r in (rows, source_rows))
    target[rows] = F.normalize(scale * target[rows] + (1 - scale) * source[source_rows], dim=1)
