"""Camera proxies: a prototype for each camera of each cluster, and losses that any method can add to its own.

Wang et al., "Camera-Aware Proxies for Unsupervised Person Re-Identification" (AAAI 2021; CAP);
Chen et al., "ICE: Inter-instance Contrastive Encoding for Unsupervised Person Re-identification" (ICCV 2021) has the
loss across cameras too. The numbers are those of public re-implementations of CAP; no released code was compared.
METHOD.CAMERA_WEIGHT turns them on.
"""
import numpy as np
import torch
import torch.nn.functional as F

from loss.cluster_memory import ClusterMemory, cluster_means
from loss.method import joined
from utils.modality import Modality
from utils.runtime import to_device

TEMPERATURE, MOMENTUM = 0.07, 0.2
INTER_WEIGHT, NEGATIVES = 0.5, 50       # of the loss across cameras; most similar proxies of other clusters in it


def with_cameras(method):
    """Let camera proxies follow a method where its METHOD.CAMERA_WEIGHT says so. Returns: the method, or a `Method`."""
    return WithCameras(method) if method.settings.camera_weight else method


class WithCameras:
    """A method whose losses are joined by those of camera proxies, one set for each modality; all else is its own."""

    def __init__(self, method):
        self.method = method

    def __getattr__(self, name):
        return getattr(self.method, name)

    def start(self, start, epoch):
        """Begin an epoch with proxies of the labels that the method trains on."""
        labels = self.method.start(start, epoch)
        self.proxies = {m: CameraProxies(start.features["feature"][m], labels[m], start.cameras[m]) for m in Modality}
        return labels

    def losses(self, features, batch):
        """Compute the method's losses, and {"camera_intra", "camera_inter"}, sums over both modalities."""
        found = [proxies.losses(features[m], batch.positions[m]) for m, proxies in self.proxies.items()]
        intra, inter = (self.method.settings.camera_weight * sum(losses) for losses in zip(*found))
        return joined(self.method.losses(features, batch),
                      {"camera_intra": intra, "camera_inter": INTER_WEIGHT * inter})

    def update(self, features, batch):
        """Move the proxies to the batch, after the method."""
        numbers = self.method.update(features, batch)
        for m, proxies in self.proxies.items():
            proxies.update(features[m], batch.positions[m])
        return numbers

    def prototypes(self):
        """Return the method's prototypes and the proxies, by name."""
        return {**self.method.prototypes(),
                **{f"cameras_{m.value}": proxies.memory.prototypes for m, proxies in self.proxies.items()}}


class CameraProxies:
    """The proxies of a modality.

    Args: features: (N, D) of all training images, whose means proxies begin with; labels: (N,) clusters, -1 for none;
        cameras: (N,).
    """

    def __init__(self, features, labels, cameras):
        kept = np.flatnonzero(labels >= 0)
        (clusters, cameras), own = np.unique(np.stack([labels, cameras])[:, kept], axis=1, return_inverse=True)
        self.of_image = np.full(len(labels), -1)
        self.of_image[kept] = own.reshape(-1)
        self.clusters, self.cameras = (to_device(v, features.device) for v in (clusters, cameras))
        self.memory = ClusterMemory(cluster_means(features, self.of_image), TEMPERATURE, MOMENTUM)

    def losses(self, x, positions):
        """Compute the losses within and across cameras, means over the images.

        Within: the cross entropy among the proxies of the image's camera. Across: each proxy of its cluster, its own
        camera's too, has an equal share of a target among these and the `NEGATIVES` most similar of other clusters.

        Args: x: (B, D) features; positions: (B,) of the images in the training set. Returns: two scalars.
        """
        own = to_device(self.of_image[positions], x.device)
        logits = F.normalize(x.float(), dim=1) @ self.memory.prototypes.T / TEMPERATURE
        others = self.cameras != self.cameras[own, None]
        same = self.clusters == self.clusters[own, None]
        hardest = logits.detach().masked_fill(same, -torch.inf).topk(min(NEGATIVES, logits.shape[1]), dim=1).indices
        kept = same.scatter(1, hardest, True)       # where there are fewer negatives, `hardest` has some of `same`
        across = logits.masked_fill(~kept, -torch.inf).log_softmax(dim=1).masked_fill(~same, 0)
        return (F.cross_entropy(logits.masked_fill(others, -torch.inf), own),
                -(across.sum(dim=1) / same.sum(dim=1)).mean())

    def update(self, x, positions):
        """Move the proxies to a batch's images, in its order. Args: as `losses`."""
        self.memory.update(x, self.of_image[positions])
