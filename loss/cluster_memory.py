"""The cluster memory: one prototype per pseudo label, learned by momentum instead of gradients.

The contrastive loss is that of Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification" (ACCV 2022).
"""
import numpy as np
import torch
import torch.nn.functional as F

from utils.runtime import to_device


class ClusterMemory:
    """Prototypes of one modality's clusters.

    Args:
        prototypes: (K, D), rows are L2-normalised here; copied.
        temperature: divides the cosine in the loss; momentum: share of the old prototype in an update.
    """

    def __init__(self, prototypes, temperature, momentum):
        self.prototypes = F.normalize(prototypes.detach().float(), dim=1)
        self.temperature = temperature
        self.momentum = momentum

    def loss(self, x, labels, before=None):
        """Compute the cross entropy of normalise(x) @ prototypes.T / temperature; gradients flow to x alone.

        Args: x: (B, D) features of any length; labels: (B,) cluster of each; before: another state of this memory from
            which the loss's value is taken, while its gradient multiplies today's prototypes (see loss/pgm.py).
        Returns: a scalar, the mean.
        """
        x = F.normalize(x.float(), dim=1)
        return cross_entropy(x, self.prototypes, labels, self.temperature, before and before.prototypes)

    def update(self, x, labels):
        """Move prototypes to their samples, in batch order: m[y] <- normalise(momentum m[y] + (1 - momentum) x).

        Clusters do not touch one another, so every cluster's first sample is taken at once, then every second one,
        and so on.

        Args: x: (B, D) features, normalised here; labels: (B,) clusters, on the host where possible.
        """
        x = F.normalize(x.detach().float(), dim=1)
        labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
        turn = _occurrence(labels)
        order = np.argsort(turn, kind="stable")
        of_turns = (to_device(v, x.device).split(np.bincount(turn).tolist()) for v in (labels[order], order))
        for rows, samples in zip(*of_turns):
            mixed = self.momentum * self.prototypes[rows] + (1 - self.momentum) * x[samples]
            self.prototypes[rows] = F.normalize(mixed, dim=1)

    def state_dict(self):
        """Return what a resumed run needs, to the bit: {"prototypes": (K, D)}."""
        return {"prototypes": self.prototypes}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`, without normalising them again."""
        self.prototypes = state["prototypes"].to(self.prototypes.device, copy=True)


class HardMemory(ClusterMemory):
    """A memory whose prototypes move to the hardest sample of the batch alone (PGM, see loss/pgm.py)."""

    def update(self, x, labels):
        """Move each prototype of the batch once, to the sample of its cluster that is least similar to it."""
        x = F.normalize(x.detach().float(), dim=1)
        labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
        clusters, hardest = hardest_samples(x, labels, self.prototypes)
        mixed = self.momentum * self.prototypes[clusters] + (1 - self.momentum) * x[hardest]
        self.prototypes[clusters] = F.normalize(mixed, dim=1)


def cross_entropy(x, prototypes, labels, temperature, before=None):
    """Compute the mean cross entropy of x @ prototypes.T / temperature; of no rows 0, which has a gradient.

    Args: x: (B, D); prototypes: (K, D); labels: (B,); before: (K, D) prototypes of an earlier time, whose logits take
        the place of today's, while the logits' gradient stays today's.
    """
    if not len(labels):
        return x.sum()
    logits = x @ prototypes.T
    if before is not None:
        logits = logits + (x @ before.T - logits).detach()
    return F.cross_entropy(logits / temperature, to_device(labels, logits.device))


def hardest_samples(x, labels, prototypes):
    """Find the sample of each cluster in a batch that is least similar to its prototype, the first among equals.

    Args: x: (B, D), rows L2-normalised; labels: (B,) array; prototypes: (K, D).
    Returns: (C,) clusters of the batch, ascending, and (C,) positions of their samples, tensors.
    """
    clusters, member = np.unique(labels, return_inverse=True)
    clusters, labels, member = (to_device(v, x.device) for v in (clusters, labels, member))
    similarity = (x * prototypes[labels]).sum(1)
    lowest = similarity.new_full(clusters.shape, torch.inf).scatter_reduce(0, member, similarity, "amin")
    place = torch.where(similarity == lowest[member], torch.arange(len(x), device=x.device), len(x))
    first = torch.full_like(clusters, len(x)).scatter_reduce(0, member, place, "amin")
    return clusters, first.clamp(max=len(x) - 1)        # NaN equals nothing; a check of the losses reports it better


def _occurrence(labels):
    """Count, for each entry of labels (B,), how many equal ones stand before it: (B,) int64."""
    order = np.argsort(labels, kind="stable")
    _, start, count = np.unique(labels[order], return_index=True, return_counts=True)
    occurrence = np.empty_like(order)
    occurrence[order] = np.arange(len(labels)) - np.repeat(start, count)
    return occurrence
