"""The cluster memory: one prototype per pseudo label, learned by momentum instead of gradients.

The contrastive loss is that of Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification" (ACCV 2022).
"""
import numpy as np
import torch
import torch.nn.functional as F

from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting

# Declared by every method that keeps such memories.
TEMPERATURE = Setting("TEMPERATURE", 0.05, Range(0, above=True), "by which inner products are divided in the "
                      "contrastive losses")
MOMENTUM = Setting("MOMENTUM", 0.1, Range(0, 1), "share of the old prototype in an update")
RENEWAL = Setting("RENEWAL", "plain", ("plain", "hard"), "samples that move a prototype: all of its cluster in a batch "
                  "(plain), or the one that is least similar to it (hard)")


class ClusterMemory:
    """One prototype per cluster of a modality: a contrastive loss against all of them, and a momentum update.

    Follows Cluster Contrast (Dai et al., ACCV 2022). Prototypes receive no gradient; `update` moves them.

    Labels are cluster numbers from 0 to K - 1, a NumPy array or a tensor on the host. Leave outliers (-1) out: `loss`
    raises IndexError for them (on a CPU), and `update` ValueError.

    Args:
        prototypes: (K, D) float tensor to start from, e.g. mean features (`cluster_means`). Copied, and L2-normalised
            here. Its device is the memory's.
        temperature: divides the cosine similarities in the loss (CCLNet: 0.05).
        momentum: share of the old prototype that `update` keeps (CCLNet: 0.1).

    Example:
        >>> memory = ClusterMemory(torch.eye(2, 3), temperature=0.05, momentum=0.1)
        >>> x = torch.tensor([[0.0, 2.0, 0.0]], requires_grad=True)     # features of any length
        >>> memory.loss(x, np.array([0])).item()        # 20 = 1 / temperature: the other cluster is closer
        20.0
        >>> memory.update(x, np.array([0]))
        >>> memory.prototypes[0]
        tensor([0.1104, 0.9939, 0.0000])
    """

    def __init__(self, prototypes, temperature, momentum):
        self.prototypes = F.normalize(prototypes.detach().float(), dim=1)
        self.temperature, self.momentum = temperature, momentum

    def loss(self, x, labels, before=None):
        """Compute the mean cross entropy of normalise(x) @ prototypes.T / temperature, of which only x has a gradient.

        Args:
            x: (B, D) float features of any length, on the memory's device.
            labels: (B,) cluster of each, or (B, K) shares of all clusters.
            before: another state of this memory from which the loss's value is taken, while its gradient multiplies
                today's prototypes (see loss/visits.py).
        """
        x = F.normalize(x.float(), dim=1)
        return cross_entropy(x, self.prototypes, labels, self.temperature, (before or self).prototypes)

    def update(self, x, labels):
        """Move prototypes to their samples, in batch order: m[y] <- normalise(momentum m[y] + (1 - momentum) x).

        Args: x: (B, D) float features, normalised here; labels: (B,) clusters, on the host.
        Raises: ValueError: a label is negative, which would move the last prototype.
        """
        labels = np.asarray(labels)
        if len(labels) and labels.min() < 0:
            raise ValueError(f"labels hold {labels.min()}; expected clusters from 0 on. Leave outliers out")
        if len(labels):
            self._move(F.normalize(x.detach().float(), dim=1), labels)

    def _move(self, x, labels):
        move(self.prototypes, x, labels, self.momentum)


class HardMemory(ClusterMemory):
    """A memory whose prototypes move to the hardest sample of the batch alone, the least similar one (PGM)."""

    def _move(self, x, labels):
        clusters, hardest = hardest_samples(x, labels, self.prototypes)
        mix(self.prototypes, clusters, x[hardest], self.momentum)


MEMORIES = {"plain": ClusterMemory, "hard": HardMemory}     # METHOD.RENEWAL -> class


def cluster_memories(start, settings, kind=None):
    """Make a memory for each modality of its clusters' mean features: {"rgb", "ir"}.

    Args: start: `EpochStart`; settings: a method's; kind: class of the memories, None for that of METHOD.RENEWAL.
    """
    kind, features = kind or MEMORIES[settings.renewal], start.features["feature"]
    return {m.value: kind(cluster_means(features[m], start.labels[m]), settings.temperature, settings.momentum)
            for m in Modality}


def update_memories(memories, features, labels):
    """Update the memories of `cluster_memories`, plain ones together, which spares a GPU's host half the work.

    Args: features: Modality -> (B, D); labels: Modality -> (B,) arrays.
    """
    rgb, ir = both = [memories[m.value] for m in Modality]
    if isinstance(rgb, HardMemory):
        for memory, m in zip(both, Modality):
            memory.update(features[m], labels[m])
        return
    sizes, joined = [len(rgb.prototypes), len(ir.prototypes)], torch.cat([rgb.prototypes, ir.prototypes])
    x = F.normalize(torch.cat([features[m].detach().float() for m in Modality]), dim=1)
    move(joined, x, np.concatenate([labels[Modality.RGB], sizes[0] + labels[Modality.IR]]), rgb.momentum)
    for memory, prototypes in zip(both, joined.split(sizes)):
        memory.prototypes.copy_(prototypes)


def move(prototypes, x, labels, momentum):
    """Move prototypes (K, D), in place, to samples (B, D) of their clusters in batch order.

    Clusters do not touch one another, so every cluster's first sample is taken at once, then every second one, and so
    on. Clusters with more samples stand before others, so those of a turn are the first rows.
    """
    clusters, member, count = np.unique(labels, return_inverse=True, return_counts=True)
    most, turn = np.argsort(-count, kind="stable"), np.empty(len(member), int)
    turn[np.argsort(member, kind="stable")] = np.arange(len(member)) - np.repeat(np.cumsum(count) - count, count)
    order = np.lexsort([np.argsort(most)[member], turn])
    order, clusters = to_device(np.concatenate([order, clusters[most]]), x.device).split([len(order), len(clusters)])
    moved, samples = prototypes[clusters], ((1 - momentum) * x)[order]
    for of_turn in samples.split(np.bincount(turn).tolist()):
        first = moved[:len(of_turn)]
        F.normalize(momentum * first + of_turn, dim=1, out=first)
    prototypes[clusters] = moved


def cluster_means(features, labels):
    """Average the features of each cluster, in the order of the images, so that every device and process agrees.

    Args: features: (N, D) float tensor; labels: (N,) int64 array of clusters 0 to K - 1; images of -1 are left out.
    Returns: (K, D) tensor on the features' device, not normalised; 0 for a cluster without images.

    Example:
        >>> cluster_means(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), np.array([0, 0, -1]))
        tensor([[0.5000, 0.5000]])
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    counts = torch.from_numpy(np.bincount(labels[order])).to(features.device)
    rows = features[to_device(order, features.device)]
    return torch.segment_reduce(rows, "sum", lengths=counts, axis=0) / counts.clamp(min=1)[:, None]


def mix(prototypes, clusters, targets, momentum):
    """Move the prototypes (K, D) of clusters (C,) to targets (C, D), once and in place."""
    prototypes[clusters] = F.normalize(momentum * prototypes[clusters] + (1 - momentum) * targets, dim=1)


def cross_entropy(x, prototypes, labels, temperature, before):
    """Compute the mean cross entropy of `cosine_logits`; of no rows 0, which has a gradient.

    Args: labels: (B,), or (B, K) shares of the clusters, of any sum; others as `cosine_logits`.
    """
    if not len(labels):
        return x.sum()
    logits = cosine_logits(x, prototypes, temperature, before)
    return F.cross_entropy(logits, to_device(labels, logits.device))


def cosine_logits(x, prototypes, temperature, before):
    """Compute x @ before.T / temperature: (B, K), with the gradient of x @ prototypes.T / temperature.

    Args: x: (B, D) and prototypes: (K, D), of unit length; before: (K, D) prototypes of an earlier time, or the same.
    """
    logits = x @ prototypes.T
    if before is not prototypes:
        logits = logits + (x @ before.T - logits).detach()
    return logits / temperature


def hardest_samples(x, labels, prototypes):
    """Find the sample of each cluster in a batch that is least similar to its prototype, the first among equals.

    Args: x: (B, D), rows L2-normalised; labels: (B,) array; prototypes: (K, D).
    Returns: (C,) clusters of the batch, ascending, and (C,) positions of their samples, tensors.
    """
    clusters, counts = np.unique(labels, return_counts=True)
    clusters, labels, first = (to_device(v, x.device) for v in (clusters, labels, np.cumsum(counts) - counts))
    order = (x * prototypes[labels]).sum(1).argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]       # by cluster, of each the least similar sample first
    return clusters, order[first]
