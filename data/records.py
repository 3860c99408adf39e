"""Lists of images, and the query and galleries of each test setting: what every data set gives the other code."""
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.modality import Modality

CROSS_MODES = {"v2t": Modality.RGB, "t2v": Modality.IR}     # mode -> modality of the query, searched among the other


@dataclass(frozen=True)
class ImageSet:
    """The images of one modality and split, in the order of their pseudo labels, features and other arrays."""

    modality: Modality
    paths: tuple                # (N,) str, relative to the data set's root, "/" between folders
    persons: np.ndarray         # (N,) int64 identity; evaluation only, never seen by training
    cameras: np.ndarray         # (N,) int64

    def __len__(self):
        return len(self.paths)

    @classmethod
    def from_rows(cls, modality, rows):
        """Build the set from a list of (path, person, camera), in its order."""
        return cls(modality, tuple(path for path, _, _ in rows), np.array([person for _, person, _ in rows], np.int64),
                   np.array([camera for _, _, camera in rows], np.int64))

    def by_person_and_camera(self, cameras=None):
        """Group the images of some cameras, or all: {(person, camera): [positions]}, persons and cameras ascending."""
        groups = {}
        for position, key in enumerate(zip(self.persons.tolist(), self.cameras.tolist())):
            if cameras is None or key[1] in cameras:
                groups.setdefault(key, []).append(position)
        return dict(sorted(groups.items()))


@dataclass(frozen=True)
class Retrieval:
    """The query and the gallery of each trial of one test setting."""

    protocol: str           # a name for tables, with everything that makes numbers comparable
    mode: str               # "all", "indoor", "v2t" or "t2v"
    rule: str               # of processor.metrics.rank_metrics
    query_modality: Modality
    query: np.ndarray       # (Q,) positions in the test images of query_modality
    galleries: tuple        # per trial: (G,) positions in the test images of the other modality
    trials: tuple           # the number of each trial


@dataclass(frozen=True)
class DataSet(ABC):
    """Training and test images of both modalities, and the protocols that the data set is tested with."""

    name: str
    root: Path
    train: dict             # Modality -> ImageSet
    test: dict              # Modality -> ImageSet
    trial: int = 0          # which split, where a data set has several; else 0
    notes: tuple = ()       # sentences that a run should log

    modes = ()                      # what `retrieval` accepts; the first is the default
    protocols = ("python",)
    published = {}                  # what -> number, of `measured`
    counts_bind = True              # whether other numbers are an error

    def retrieval(self, mode="", trials=10, protocol="python"):
        """Select the query and the galleries of a mode's first `trials` trials: `Retrieval`.

        Args: mode: "" is the first of `modes`; protocol: "python" draws galleries with Python's random, one image per
            person and camera; "original-1" and "original-10" read 1 or 10 of each from a file of the data set.
        Raises: UserError: the data set has no such mode or protocol, or not as many trials.
        """
        mode = mode or self.modes[0]
        if mode not in self.modes:
            raise UserError(f"TEST.MODE is {mode!r}; {self.name} has {' and '.join(self.modes)}")
        if protocol not in self.protocols:
            raise UserError(f"TEST.PROTOCOL is {protocol!r}; {self.name} has {' and '.join(self.protocols)}")
        return self._retrieval(mode, trials, protocol)

    @abstractmethod
    def _retrieval(self, mode, trials, protocol):
        """Select as `retrieval` does; mode and protocol are known ones."""

    def cache_dir(self, base=""):
        """Name the folder of the decoded images: one per split, under base or the data set's root."""
        return Path(base or self.root) / (f"trial{self.trial}" if self.trial else "")

    def label_dirs(self):
        """List the folders beside the images that may hold pseudo labels; without a split in it, the first split's."""
        folder = self.root / "pseudo_labels"
        own = (folder / f"trial{self.trial}",) if self.trial else ()
        return own + ((folder,) if self.trial <= 1 else ())

    def test_lines(self, modality):
        """Say in a line of each test image what its score depends on beside its pixels."""
        images = self.test[modality]
        return [f"{person} {camera}" for person, camera in zip(images.persons, images.cameras)]

    def sets(self):
        """List all images as (split, `ImageSet`), split "train" or "test"."""
        return [(split, images) for split in ("train", "test") for images in getattr(self, split).values()]

    def counts(self):
        """Count persons, images and images per camera: one line per split and modality."""
        lines = []
        for split, images in self.sets():
            cameras, sizes = np.unique(images.cameras, return_counts=True)
            per_camera = ", ".join(f"{camera}: {size:,}" for camera, size in zip(cameras, sizes))
            lines.append(f"{self.name} {split} {images.modality.value}: {count_persons([images])} persons, "
                         f"{len(images):,} images{f' (camera {per_camera})' if len(cameras) > 1 else ''}")
        return lines

    def measured(self):
        """Count what is published of every data set: what -> number; of the test alone where there is no training."""
        quantities = {}
        for split, sets in [("training", self.train)] * bool(self.train) + [("test", self.test)]:
            quantities[f"{split} persons"] = count_persons(sets.values())
            for modality, images in sets.items():
                quantities[f"{split} {modality.value.upper()} images"] = len(images)
        return quantities

    def differences(self):
        """Name every quantity that is not the published one, each in a phrase."""
        measured = self.measured()
        return [f"{measured[what]:,} {what} instead of {number:,}"
                for what, number in self.published.items() if measured.get(what, number) != number]

    def check_counts(self):
        """Return this data set if its counts are the published ones; if they do not bind, with a note on what differs.

        Raises: UserError: a count differs.
        """
        if not (differences := self.differences()):
            return self
        found = f"{self.root} holds {'; '.join(differences)}"
        if self.counts_bind:
            raise UserError(f"{found}. Unpack the whole {self.name} again, or set DATASET.CHECK_COUNTS False "
                            "(process.py: --allow-partial) for a subset or people of your own")
        return replace(self, notes=(*self.notes,
                                    f"warning: {found}. Results may not compare with published ones"))


def count_persons(sets):
    """Count the persons that several `ImageSet`s show."""
    return len(np.unique(np.concatenate([images.persons for images in sets])))


def draw_gallery(groups, trial):
    """Draw one image of each group of `by_person_and_camera`: (G,) positions.

    The released code calls random.seed(trial) and then random.choice in this order; the stream is the same.
    """
    rng = random.Random(trial)
    return np.array([rng.choice(positions) for positions in groups.values()], dtype=np.int64)
