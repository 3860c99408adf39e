"""What a method is: given an epoch's start it says on which labels to train; given a batch, its losses.

    labels = method.start(EpochStart(features, clusters, cameras), epoch)
    for batch in ...:
        losses = method.losses(features, batch)
        ... backward, optimiser ...
        numbers = method.update(features, batch)
    links = method.links()

A method sees whole batches and all training images, however many processes there are. To add one, write a subclass and
enter it into `loss.methods.METHODS` (docs/extending-methods.md).
"""
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from utils.errors import UserError
from utils.settings import Range, Setting


@dataclass(frozen=True)
class EpochStart:
    """All training images at the start of an epoch, in the order of the data set."""

    features: dict      # head of the method's `needs` -> Modality -> (N, ·) tensor; "feature" is of unit length, where
                        # the method is `mirrored` as `processor.features.embed` says; "depths" (N, L, D) have any
                        # length
    labels: dict        # Modality -> (N,) int64 array of clusters from 0 on, -1 for outliers
    cameras: dict       # Modality -> (N,) int64 array


class Method:
    """Base of all methods. Nothing here trains: `start` and `losses` are a subclass's.

    Args: settings: values of the settings that the class and its bases declare, by their names in lower case; those
        left out have their defaults.

    Example:
        >>> from loss.methods import CCLNet
        >>> CCLNet(cross_epoch=3).settings.swap_scale
        0.1
    """

    SETTINGS = (Setting("CROSS_EPOCH", 61, Range(1, whole=True), "first epoch in which the modalities meet: swapping, "
                        "or the cross-modal loss"),
                Setting("CAMERA_WEIGHT", 0.0, Range(0), "of the losses of camera proxies; 0: there are none "
                        "(loss/cameras.py)"))
    needs = ("feature",)        # heads embedded at an epoch's start: "feature", "depths", "projection", "text"
    # Attributes of the class, the same for all settings:
    views = 1                   # of each visible image in a batch
    mirrored = False            # whether an epoch's features are means over an image and its mirror image
    depths = 1                  # that a tower's features must have: 2 for deep and shallow ones
    best_epoch = None           # that begins with the weights which were best on test data so far
    memories = {}               # name -> what has `prototypes` (K, D); made anew in `start`

    def __init__(self, **settings):
        known = {setting.name.lower(): setting.default for setting in self.declared()}
        if unknown := settings.keys() - known.keys():
            raise TypeError(f"{type(self).__name__} has no setting {sorted(unknown)[0]}; it has {', '.join(known)}")
        self.settings = SimpleNamespace(**known | settings)

    @classmethod
    def declared(cls):
        """List the settings of the class and its bases; of one name the class's own counts."""
        found = {}
        for base in reversed(cls.__mro__):
            found |= {setting.name: setting for setting in vars(base).get("SETTINGS", ())}
        return list(found.values())

    def start(self, start, epoch):
        """Begin an epoch.

        Args: start: `EpochStart`; epoch: from 1.
        Returns: Modality -> (N,) int64 array, the labels to train on; -1 leaves an image out.
        """
        raise NotImplementedError

    def unifies(self, epoch):
        """Tell whether both modalities' labels share one range of clusters in an epoch."""
        return False

    def losses(self, features, batch):
        """Compute the losses of a batch; they are summed for training, and logged as loss_NAME.

        Args:
            features: Modality -> (B, D), not normalised, with gradients.
            batch: Modality -> (B,) arrays on the host: `batch.labels`, of `start`; `batch.positions` among the
            training images; `batch.cameras`.
        Returns: {name: scalar tensor}.
        """
        raise NotImplementedError

    def update(self, features, batch):
        """Follow the optimiser's step, with the features that `losses` saw. Returns: {name: number} for the log."""
        return {}

    def links(self):
        """Return the `Links` after the epoch's last step, for the log and the page; None: nothing is linked."""
        return None

    def prototypes(self):
        """Return the prototypes after the last update: {name: (K, D) tensor}."""
        return {name: memory.prototypes for name, memory in self.memories.items()}


def joined(losses, others):
    """Add others' losses to those of a method: {name: scalar}. Raises UserError: one would replace another."""
    if twice := losses.keys() & others.keys():
        raise UserError(f"the method's loss {min(twice)} has the name of one that is added to it, which would replace "
                        "it; give it another name")
    return {**losses, **others}


def check_labels(labels, method, cameras):
    """Refuse what a method's `start` returned, where it is no label of each image.

    Args: method: its class; cameras: Modality -> (N,). Raises: UserError.
    """
    for m, images in cameras.items():
        found = np.asarray(labels[m])
        if found.shape != images.shape or found.dtype != np.int64 or found.min() < -1 or found.max() < 0:
            raise UserError(f"{method.__name__}.start returns {found.dtype} of shape {found.shape} for {m.value}; "
                            f"expected int64 of shape {images.shape}, clusters from 0 on, -1 for an image without one")
