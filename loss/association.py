"""Which clusters of the two modalities belong together: functions from rows of both modalities to links.

An association takes a row per cluster of both modalities, in any space that the two share, and returns `Links`. A
method names the one that it uses (loss/methods.py).
"""
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

SINKHORN = (5.0, 5000, 1e-5)        # regularisation, most iterations, error to stop at: RPNR's released numbers


class Links(NamedTuple):
    """The partner of every cluster in the other modality, -1 for none; not always one-to-one or mutual."""

    rgb_to_ir: np.ndarray       # (K_rgb,) int64
    ir_to_rgb: np.ndarray       # (K_ir,) int64

    def pairs(self):
        """List each link once, from whichever side it is: RGB clusters (M,), ascending, their IR clusters (M,)."""
        rgb, ir = np.flatnonzero(self.rgb_to_ir >= 0), np.flatnonzero(self.ir_to_rgb >= 0)
        both = np.concatenate([np.stack([rgb, self.rgb_to_ir[rgb]]), np.stack([self.ir_to_rgb[ir], ir])], axis=1)
        rgb, ir = np.unique(both, axis=1)
        return rgb, ir


def link(associate, rgb, ir):
    """Associate the clusters that have a row; those whose row is 0 stay without a link.

    Args: associate: a function of this file; rgb: (K_rgb, D), ir: (K_ir, D) tensors of any length.
    Returns: `Links`.
    """
    rows = [F.normalize(rows.float(), dim=1) for rows in (rgb, ir)]
    kept = [np.flatnonzero(r.any(dim=1).cpu().numpy()) for r in rows]
    links = no_links(rgb, ir)
    if all(map(len, kept)):
        found = associate(*(r[k] for r, k in zip(rows, kept)))
        for partner, among, own, other in zip(links, found, kept, kept[::-1]):
            partner[own] = np.where(among >= 0, other[among], -1)
    return links


def no_links(rgb, ir):
    """Link nothing."""
    return Links(np.full(len(rgb), -1), np.full(len(ir), -1))


def hungarian(rgb, ir):
    """Link clusters one-to-one so that the sum of inner products is largest; pairs below 0 stay without a link.

    CCLNet's association: scipy's solver of the assignment problem.

    Args: rgb: (K_rgb, D), ir: (K_ir, D) tensors, rows L2-normalised. Returns: `Links`.
    """
    similarity = (rgb @ ir.T).cpu().numpy()
    similarity = np.nan_to_num(similarity)      # the solver raises on NaN, which a check of the losses reports better
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    kept = similarity[rows, columns] >= 0
    links = no_links(rgb, ir)
    links.rgb_to_ir[rows[kept]] = columns[kept]
    links.ir_to_rgb[columns[kept]] = rows[kept]
    return links


def progressive(rgb, ir):
    """Link every cluster, in rounds of cheapest assignments.

    Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
    Learning" (CVPR 2023). The first round gives each cluster of the modality with fewer its own partner, and links both
    ways. In each further round the clusters left over are assigned to those of the other modality, each of which takes
    one at most, and are linked one way. Two rules are ours: the roles change where there are fewer visible clusters
    (the released code does so for RegDB, and links nothing for SYSU-MM01), and there are as many rounds as it takes
    (the released code has two, and fails where one modality has more than twice as many clusters).

    Args: rgb: (K_rgb, D), ir: (K_ir, D) tensors, rows L2-normalised. Returns: `Links`.
    """
    links, cost = no_links(rgb, ir), matching_cost(rgb, ir)
    many, few = links
    if len(rgb) < len(ir):
        (few, many), cost = links, cost.T
    rows, columns = linear_sum_assignment(cost)
    many[rows], few[columns] = columns, rows
    while (left := np.flatnonzero(many < 0)).size:
        rows, columns = linear_sum_assignment(cost[left])
        many[left[rows]] = columns
    return links


def optimal_transport(rgb, ir):
    """Link each cluster to the one that gets the most of it in an optimal transport plan; not always mutual.

    Yin et al., "Robust Pseudo-label Learning with Neighbor Relation for Unsupervised Visible-Infrared Person
    Re-Identification" (ACM MM 2024).

    Args: rgb: (K_rgb, D), ir: (K_ir, D) tensors, rows L2-normalised. Returns: `Links`.
    """
    plan, _ = sinkhorn(matching_cost(rgb, ir), *SINKHORN)
    return Links(plan.argmax(axis=1), plan.argmax(axis=0))


def matching_cost(rgb, ir):
    """Compute exp(-cosine) of rows (K_rgb, D), (K_ir, D): (K_rgb, K_ir) float64 array."""
    return np.exp(-np.nan_to_num((rgb @ ir.T).cpu().numpy().astype(np.float64)))


def sinkhorn(cost, regularisation, iterations, tolerance):
    """Compute the entropic optimal transport plan between uniform marginals.

    Cuturi, "Sinkhorn Distances" (NIPS 2013), with the stopping rule of the package POT (ot.sinkhorn), whose plans it
    equals; POT itself is a download of 33 MB.

    Args: cost: (A, B); regularisation: the larger, the more even the plan; iterations: at most; tolerance: largest
        error of the column sums (Euclidean), looked at in iterations 1, 11, 21, ...
    Returns: (A, B) float64 plan, iterations done.
    """
    kernel = np.exp(-np.asarray(cost, dtype=np.float64) / regularisation)
    rows, columns = (np.full(size, 1 / size) for size in kernel.shape)
    u = rows
    for number in range(1, iterations + 1):
        v = columns / (kernel.T @ u)
        u = rows / (kernel @ v)
        if number % 10 == 1 and np.linalg.norm((kernel.T @ u) * v - columns) < tolerance:
            break
    return u[:, None] * kernel * v, number
