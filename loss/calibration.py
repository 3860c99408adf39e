"""Corrects pseudo labels: each image goes to the cluster whose dense part it is most similar to (RPNR)."""
import numpy as np
import torch
import torch.nn.functional as F

from loss.links import BLOCK_ROWS, nearest
from utils.runtime import to_device

SIMILAR = 0.5           # least cosine of neighbours, as released


def calibrate(features, labels, top):
    """Give each image the label of the prototype that it is most similar to.

    Yin et al., "Robust Pseudo-label Learning with Neighbor Relation for Unsupervised Visible-Infrared Person
    Re-Identification" (ACM MM 2024).

    Args: features: (N, D) of any length; labels: (N,) clusters 0 to K - 1, -1 is in none and stays so; top: see
        `dense_means`.
    Returns: (N,) int64; a cluster may have lost all its images.
    """
    x = F.normalize(features, dim=1)
    prototypes = F.normalize(dense_means(features, labels, density(x, labels), top), dim=1)
    return np.where(labels < 0, -1, nearest(x, prototypes, 1)[:, 0].cpu().numpy())


def density(x, labels):
    """Sum sign(cosine - SIMILAR) between each image and all images of its cluster, itself included.

    Args: x: (N, D) of unit length; labels: (N,) clusters. Returns: (N,) float64 array, NaN for label -1.
    """
    found = np.full(len(labels), np.nan)
    for members in _members(labels):
        own = x[to_device(members, x.device)]
        found[members] = torch.cat([(block @ own.T - SIMILAR).sign().sum(1) for block in own.split(BLOCK_ROWS)]).cpu()
    return found


def dense_means(features, labels, densities, top):
    """Average the `top` densest images of each cluster, the earlier one among equals; all of a smaller cluster.

    Args: features: (N, D); labels, densities: (N,). Returns: (K, D).
    """
    chosen = [members[np.argsort(-densities[members], kind="stable")[:top]] for members in _members(labels)]
    return torch.stack([features[to_device(rows, features.device)].mean(0) for rows in chosen])


def _members(labels):
    """Return the positions of each cluster's images, ascending: a list of arrays."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(labels.max() + 1)))[1:]
