"""The batches of an epoch: which images, augmented how; drawn from streams named by seed, epoch and step."""
from dataclasses import dataclass, replace

import numpy as np

from data import augment
from utils.distributed import ALONE
from utils.modality import Modality
from utils.seeding import numpy_rng


@dataclass(frozen=True)
class Batch:
    """P x K augmented images of each modality (all Modality -> ...), of which each of N processes has its share.

    Where the method asks for two views of each visible image, all first views stand before all second ones, with labels
    and positions twice.
    """

    images: dict        # (B / N, 3, H, W) float32, normalised
    labels: dict        # (B,) int64 on the host, what the epoch trains on
    positions: dict     # (B,) int64 on the host, in the training set
    cameras: dict       # (B,) int64 on the host


class Batches:
    """The batches of an epoch of train_prepare or the fine-tune, made when they are asked for.

    All processes draw the same batches; each reads and augments the images of its share.

    Args: images: Modality -> `ImageBank`; labels: Modality -> (N,) clusters; settings: of `train_settings`; epoch: from
        1; views: of each visible image; processes: of `utils.distributed`.
    """

    def __init__(self, images, labels, settings, epoch, views=1, processes=ALONE):
        s = self.settings = settings
        self.images, self.labels, self.epoch, self.processes = images, labels, epoch, processes
        self.views = {Modality.RGB: views, Modality.IR: 1}
        labelled = max(int((labels[m] >= 0).sum()) for m in Modality)
        count = s.iterations or labelled // (s.clusters_per_batch * s.instances) + 1
        clusters = {Modality.RGB: s.rgb_clusters or s.clusters_per_batch, Modality.IR: s.clusters_per_batch}
        self.positions = {m: cluster_batches(labels[m], clusters[m], s.instances, count,
                                             numpy_rng(s.seed, "sampler", m.value, epoch),
                                             images[m].cameras if s.across_cameras else None) for m in Modality}
        counts = [s.instances * clusters[m] * self.views[m] for m in Modality]
        self.size = sum(counts)                         # images of both modalities
        self.own = np.concatenate([rows[processes.share(len(rows))]     # this process's, visible ones first
                                   for rows in np.split(np.arange(self.size), counts[:1])])

    def __len__(self):
        return len(self.positions[Modality.RGB])

    def __getitem__(self, step):
        """Return the `Batch` of a step, counted from 0."""
        positions = {m: np.tile(rows[step], self.views[m]) for m, rows in self.positions.items()}
        return Batch({m: self._augmented(m, step, positions[m]) for m in Modality},
                     {m: self.labels[m][positions[m]] for m in Modality}, positions,
                     {m: self.images[m].cameras[positions[m]] for m in Modality})

    def _augmented(self, modality, step, positions):
        own, policy = self.processes.share(len(positions)), self.settings.augmentation[modality]
        bank = self.images[modality]
        images = bank.batch(positions[own])
        name, size = (self.settings.seed, "augment", modality.value, self.epoch, step), images.shape[2:]
        if self.views[modality] == 1:
            plan = augment.draw(policy, len(positions), size, numpy_rng(*name))
        else:       # channels are exchanged in the second view alone
            of_first = replace(policy, channel=0.0, jitter=policy.first_jitter)
            first = augment.draw(of_first, len(positions) // 2, size, numpy_rng(*name))
            second = augment.draw(policy, len(positions) // 2, size, numpy_rng(*name, "second view"))
            plan = first.followed_by(second)
        return augment.apply(images, plan if len(images) == len(positions) else plan.part(own), bank.normalisation)

    def names(self, step):
        """Return the names of the images in a step's batch, for messages."""
        return [name for m in Modality for name in self.images[m].names(np.unique(self.positions[m][step]))]


class PromptBatches:
    """The batches of an epoch of prompts: every labelled image of the larger modality once, the other topped up with
    random repeats.

    Args: images: Modality -> `ImageBank`; labels: Modality -> (N,); settings: of `prompt_settings`; epoch: from 1.
    """

    def __init__(self, images, labels, settings, epoch):
        self.images, self.size = images, settings.batch_size
        kept = {m: np.flatnonzero(labels[m] >= 0) for m in Modality}
        rng, longest = numpy_rng(settings.seed, "prompt batches", epoch), max(map(len, kept.values()))
        self.order = {m: positions[np.concatenate([rng.permutation(len(positions)), rng.integers(
            0, len(positions), longest - len(positions))])] for m, positions in kept.items()}

    def __len__(self):
        return -(-len(self.order[Modality.RGB]) // self.size)

    def __getitem__(self, step):
        """Return the positions in the training set of a step, counted from 0: Modality -> (b,), b <= batch size."""
        if step >= len(self):
            raise IndexError(step)
        return {m: order[step * self.size:(step + 1) * self.size] for m, order in self.order.items()}

    def names(self, step):
        """Return the names of the images in a step's batch, for messages."""
        return [name for m in Modality for name in self.images[m].names(np.unique(self[step][m]))]


def cluster_batches(labels, clusters, instances, iterations, rng, cameras=None):
    """Draw the positions of the images of each batch.

    Per batch, P clusters are drawn without replacement (with replacement where fewer exist), and K images of
    each with replacement; outliers are never drawn.

    Args: labels: (N,) int, -1 is an outlier; clusters: P; instances: K; rng: numpy Generator; cameras: (N,) int, with
        which the images of a cluster are drawn by `across_cameras`.
    Returns: (iterations, P * K) int64; the images of a cluster lie side by side.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    _, start, size = np.unique(labels[order], return_index=True, return_counts=True)
    if len(start) >= clusters:
        chosen = np.argsort(rng.random((iterations, len(start))), axis=1)[:, :clusters]
    else:
        chosen = rng.integers(0, len(start), (iterations, clusters))
    if cameras is not None:
        images = np.split(order, start[1:])
        return np.array([[across_cameras(images[c], cameras, instances, rng) for c in row]
                         for row in chosen]).reshape(iterations, -1)
    offset = (rng.random((iterations, clusters, instances)) * size[chosen][..., None]).astype(np.int64)
    return order[start[chosen][..., None] + offset].reshape(iterations, -1)


def across_cameras(images, cameras, instances, rng):
    """Draw K images of a cluster as Cluster Contrast does: any one, the others from other cameras than its own.

    Where they are fewer than K they are drawn with replacement; a cluster of one camera gives its other images.

    Args: images: (n,) positions; cameras: (N,); instances: K; rng: numpy Generator. Returns: list of K positions.
    """
    first = rng.choice(images)
    others = images[cameras[images] != cameras[first]]
    if len(others) == 0:
        others = images[images != first] if len(images) > 1 else images
    return [first, *rng.choice(others, instances - 1, replace=len(others) < instances)]
