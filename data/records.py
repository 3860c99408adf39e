"""What a data set is to the rest of the code: lists of images, and who is searched among whom."""
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.modality import Modality


@dataclass(frozen=True)
class ImageSet:
    """Images of one modality, in the order of all arrays that belong to them (pseudo labels, features)."""

    modality: Modality
    paths: tuple            # (N,) str, relative to the data set's root, "/" between folders
    persons: np.ndarray     # (N,) int64 identity; evaluation only, never seen by training
    cameras: np.ndarray     # (N,) int64

    def __len__(self):
        return len(self.paths)

    @classmethod
    def from_rows(cls, modality, rows):
        """Build from (path, person, camera) rows, in order."""
        rows = list(rows)
        return cls(modality, tuple(r[0] for r in rows), np.array([r[1] for r in rows], dtype=np.int64),
                   np.array([r[2] for r in rows], dtype=np.int64))


@dataclass(frozen=True)
class Retrieval:
    """One way to test: which test images are queries, and the gallery of each trial."""

    protocol: str           # a name for tables, with everything that makes numbers comparable
    mode: str               # "all", "indoor", "v2t" or "t2v"
    rule: str               # of utils.metrics.rank_metrics
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
    cache_dir: Path         # where the decoded images are kept

    modes = ()              # what `retrieval` accepts; the first is the default

    @abstractmethod
    def retrieval(self, mode, trials):
        """The `Retrieval` of a mode with its first `trials` trials."""

    def counts(self):
        """Numbers for people: rows of (what, persons, images)."""
        return [(f"{split} {modality.value}", len(np.unique(images.persons)), len(images))
                for split, sets in (("train", self.train), ("test", self.test))
                for modality, images in sets.items()]
