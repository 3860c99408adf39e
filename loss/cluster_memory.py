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

    def loss(self, x, labels):
        """Compute the cross entropy of normalise(x) @ prototypes.T / temperature; gradients flow to x alone.

        Args: x: (B, D) features of any length; labels: (B,) cluster of each. Returns: a scalar, the mean.
        """
        logits = F.normalize(x.float(), dim=1) @ self.prototypes.T / self.temperature
        return F.cross_entropy(logits, to_device(labels, logits.device))

    def update(self, x, labels):
        """Move prototypes to their samples, in batch order: m[y] <- normalise(momentum m[y] + (1 - momentum) x).

        Clusters do not touch one another, so every cluster's first sample is taken at once, then every second one,
        and so on.

        Args: x: (B, D) features, normalised here; labels: (B,) clusters, on the host where possible.
        """
        x = F.normalize(x.detach().float(), dim=1)
        labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
        turn = _occurrence(labels)
        for number in range(turn.max() + 1):
            samples = np.flatnonzero(turn == number)
            rows, samples = (to_device(v, x.device) for v in (labels[samples], samples))
            mixed = self.momentum * self.prototypes[rows] + (1 - self.momentum) * x[samples]
            self.prototypes[rows] = F.normalize(mixed, dim=1)

    def state_dict(self):
        """Return what a resumed run needs, to the bit: {"prototypes": (K, D)}."""
        return {"prototypes": self.prototypes}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`, without normalising them again."""
        self.prototypes = state["prototypes"].to(self.prototypes.device, copy=True)


def _occurrence(labels):
    """Count, for each entry of labels (B,), how many equal ones stand before it: (B,) int64."""
    order = np.argsort(labels, kind="stable")
    _, start, count = np.unique(labels[order], return_index=True, return_counts=True)
    occurrence = np.empty_like(order)
    occurrence[order] = np.arange(len(labels)) - np.repeat(start, count)
    return occurrence
