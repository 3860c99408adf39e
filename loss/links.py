"""Which clusters of the two modalities belong together: rules that turn cosines into links.

A rule (`hungarian`, `progressive`, `optimal_transport`) takes the cosines of all visible clusters with all infrared
ones, an array (K_rgb, K_ir), and returns `Links`. A `LinkingMethod` names its own as `rule`. METHOD.LINK_BY says of
what the cosines are:

    prototype    the memories' prototypes as they stand in each step, so links change within the epoch
    centroid     the clusters' mean features at the epoch's start
    projection   their mean projections, of unit length, in CLIP's joint space
    text         their mean texts: those that train_clip.py learned for train_prepare's labels of their images

Links of all spaces but the first hold for the whole epoch.
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from loss.cluster_memory import cluster_means
from loss.method import Method
from utils.errors import UserError
from utils.modality import Modality
from utils.runtime import gpu_rounding, to_device, to_host
from utils.settings import Setting

REGULARISATION, ITERATIONS, TOLERANCE = 5.0, 5000, 1e-5     # of `sinkhorn`: RPNR's released numbers
BLOCK_ROWS = 1024       # whose similarities to all others are computed at once
HEAD_OF = {"prototype": "feature", "centroid": "feature", "projection": "projection", "text": "text"}   # of each space
LINK_BY = Setting("LINK_BY", "prototype", tuple(HEAD_OF), "where clusters are linked: the prototypes of each step, or "
                  "at an epoch's start centroids, mean projections or mean texts")


class Links(NamedTuple):
    """The partner of every cluster in the other modality, -1 for none; neither one-to-one nor mutual in general.

    Unified labels have one range: each cluster is then its own partner.
    """

    rgb_to_ir: np.ndarray       # (K_rgb,) int64
    ir_to_rgb: np.ndarray       # (K_ir,) int64


class LinkedClusters(NamedTuple):
    """Links one by one, for the log and the page."""

    rgb: np.ndarray             # (M,) int64 visible clusters, ascending
    ir: np.ndarray              # (M,) int64 infrared clusters
    similarity: np.ndarray      # (M,) cosines of their mean features at the epoch's start


def linked_clusters(links, labels, centres):
    """List each link between clusters that have images once, from whichever side it is: `LinkedClusters`.

    Args: links: `Links`; labels: Modality -> (N,), trained on: a method may have taken a cluster's last image from it;
        centres: Modality -> (K, D) tensor, its mean features before any step: linked prototypes may have been mixed.
    Raises: UserError: there are too few partners, or one is no cluster.
    """
    for m, partner, others in zip(Modality, links, links[::-1]):
        if len(partner) <= labels[m].max() or partner.max() >= len(others):
            raise UserError(f"`links` has {len(partner)} partners of {m.value} clusters, {partner[:8]} ...; "
                            f"expected one for each of {labels[m].max() + 1}, -1 or below {len(others)}")
    rgb, ir = np.flatnonzero(links.rgb_to_ir >= 0), np.flatnonzero(links.ir_to_rgb >= 0)
    pairs = np.concatenate([np.stack([rgb, links.rgb_to_ir[rgb]]), np.stack([links.ir_to_rgb[ir], ir])], axis=1)
    pairs = pairs[:, np.all([np.isin(side, labels[m]) for m, side in zip(Modality, pairs)], axis=0)]
    rgb, ir = np.unique(pairs, axis=1)
    rows = [centres[m][to_device(side, centres[m].device)].float() for m, side in zip(Modality, (rgb, ir))]
    return LinkedClusters(rgb, ir, F.cosine_similarity(*rows).cpu().numpy())


def inner_products(rgb, ir):
    """Compute all inner products of rows (K_rgb, D) with rows (K_ir, D) on their device, never rounded to TF32."""
    with gpu_rounding("fp32"):
        return rgb @ ir.T


def nearest(x, others, count):
    """Find the rows of others (M, D) with the largest inner products with those of x (N, D), by blocks of x.

    Args: count: of rows, at most M count. Returns: (N, count) int64 tensor on their device, the largest first.
    """
    return torch.cat([inner_products(block, others).topk(min(count, len(others)), dim=1).indices
                      for block in x.split(BLOCK_ROWS)])


class LinkingMethod(Method):
    """A method that links clusters by its `rule`. It declares METHOD.LINK_BY, and in `start` sets `epoch_links`."""

    @property
    def needs(self):
        """Heads that are embedded at an epoch's start."""
        return tuple(dict.fromkeys(("feature", HEAD_OF[self.settings.link_by])))

    def link(self, start):
        """Link an epoch's clusters for the whole epoch: `Links`; None for prototypes, which are linked in each step."""
        space = self.settings.link_by
        if space == "prototype":
            return None
        rows = start.features[HEAD_OF[space]]
        if space == "projection":
            rows = {m: F.normalize(rows[m], dim=1) for m in Modality}
        return link_rows(self.rule, *(cluster_means(rows[m], start.labels[m]) for m in Modality))

    def cosines(self):
        """Begin to fetch the cosines of all prototypes (K_rgb, K_ir): a function that returns the array."""
        return to_host(inner_products(*(self.memories[m.value].prototypes for m in Modality)))

    def links(self):
        """Return the epoch's `Links`, or link the prototypes as they are."""
        return self.epoch_links or self.rule(self.cosines()())


def link_rows(rule, rgb, ir):
    """Link the clusters that have a row; those whose row is 0 (a cluster without a text) stay without a link.

    Args: rule: as those of this file; rgb: (K_rgb, D), ir: (K_ir, D) tensors of any length. Returns: `Links`.
    """
    rows = [F.normalize(rows.float(), dim=1) for rows in (rgb, ir)]
    kept = [np.flatnonzero(r.any(dim=1).cpu().numpy()) for r in rows]
    links = no_links(len(rgb), len(ir))
    if all(map(len, kept)):
        found = rule(inner_products(*(r[to_device(k, r.device)] for r, k in zip(rows, kept))).cpu().numpy())
        for partner, among, own, other in zip(links, found, kept, kept[::-1]):
            partner[own] = np.where(among >= 0, other[among], -1)
    return links


def no_links(rgb, ir):
    """Link nothing. Args: numbers of clusters."""
    return Links(np.full(rgb, -1), np.full(ir, -1))


def hungarian(similarity):
    """Link visible and infrared clusters one to one; CCLNet's rule.

    Maximises the sum of cosines (`scipy.optimize.linear_sum_assignment`). If the two sides have different numbers of
    clusters, those left over stay without a link; so do pairs with a negative cosine.

    Args: similarity: (K_rgb, K_ir) array, cosines of a row per visible cluster with a row per infrared one.
    Returns: `Links`.

    Example:
        >>> hungarian(np.array([[0.1, 0.9], [0.2, 0.3], [0.8, 0.4]]))       # three visible clusters, two infrared ones
        Links(rgb_to_ir=array([ 1, -1,  0]), ir_to_rgb=array([2, 0]))
    """
    similarity = np.nan_to_num(similarity)      # the solver raises on NaN, which a check of the losses reports better
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    kept = similarity[rows, columns] >= 0
    links = no_links(*similarity.shape)
    links.rgb_to_ir[rows[kept]] = columns[kept]
    links.ir_to_rgb[columns[kept]] = rows[kept]
    return links


def progressive(similarity):
    """Link every cluster, in rounds of cheapest assignments.

    Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
    Learning" (CVPR 2023). The first round gives each cluster of the modality with fewer its own partner, and links both
    ways. In each further round the clusters left over are assigned to those of the other modality, each of which takes
    one at most, and are linked one way. Two rules are ours: the roles change where there are fewer visible clusters
    (the released code does so for RegDB, and links nothing for SYSU-MM01), and there are as many rounds as it takes
    (the released code has two, and fails where one modality has more than twice as many clusters).

    Args: as `hungarian`. Returns: `Links` without -1.

    Example:
        >>> progressive(np.array([[0.1, 0.9], [0.2, 0.3], [0.8, 0.4]]))     # the second visible cluster is linked too
        Links(rgb_to_ir=array([1, 1, 0]), ir_to_rgb=array([2, 0]))
    """
    links, cost = no_links(*similarity.shape), link_cost(similarity)
    many, few = links
    if len(many) < len(few):
        (few, many), cost = links, cost.T
    rows, columns = linear_sum_assignment(cost)
    many[rows], few[columns] = columns, rows
    while (left := np.flatnonzero(many < 0)).size:
        rows, columns = linear_sum_assignment(cost[left])
        many[left[rows]] = columns
    return links


def optimal_transport(similarity):
    """Link each cluster to the one that gets the most of it in an optimal transport plan; not always mutual.

    Yin et al., "Robust Pseudo-label Learning with Neighbor Relation for Unsupervised Visible-Infrared Person
    Re-Identification" (ACM MM 2024).

    Args: as `hungarian`. Returns: `Links` without -1.

    Example:
        >>> optimal_transport(np.array([[0.1, 0.9], [0.2, 0.3], [0.8, 0.4]]))     # the second infrared one is in demand
        Links(rgb_to_ir=array([1, 0, 0]), ir_to_rgb=array([2, 0]))
    """
    plan, _ = sinkhorn(link_cost(similarity))
    return Links(plan.argmax(axis=1), plan.argmax(axis=0))


def link_cost(similarity):
    """Compute exp(-cosine) in float64, as the released codes do. Args: similarity: (K_rgb, K_ir) array."""
    return np.exp(-np.nan_to_num(similarity.astype(np.float64)))


def sinkhorn(cost):
    """Compute the entropic optimal transport plan between uniform marginals.

    Cuturi, "Sinkhorn Distances" (NIPS 2013), with the stopping rule of the package POT (ot.sinkhorn), whose plans it
    equals; POT itself is a download of 33 MB.

    Args: cost: (A, B) float64. Returns: (A, B) float64 plan, iterations done.
    """
    kernel = np.exp(-cost / REGULARISATION)
    rows, columns = (np.full(size, 1 / size) for size in kernel.shape)
    u = rows
    for number in range(1, ITERATIONS + 1):
        v = columns / (kernel.T @ u)
        u = rows / (kernel @ v)
        if number % 10 == 1 and np.linalg.norm((kernel.T @ u) * v - columns) < TOLERANCE:
            break
    return u[:, None] * kernel * v, number
