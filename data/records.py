"""What every data set gives the other code: lists of images, query and galleries; and how its files are read."""
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError, quoted
from utils.modality import Modality

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
ORIGINAL = "Take the file of the original data set"
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


def draw_gallery(groups, trial):
    """Draw one image of each group of `by_person_and_camera`: (G,) positions.

    The released code calls random.seed(trial) and then random.choice in this order; the stream is the same.
    """
    rng = random.Random(trial)
    return np.array([rng.choice(positions) for positions in groups.values()], dtype=np.int64)


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
        for key, value, known in (("MODE", mode, self.modes), ("PROTOCOL", protocol, self.protocols)):
            if value not in known:
                raise UserError(f"TEST.{key} is {value!r}; {self.name} has {' and '.join(known)}")
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
            lines.append(f"{self.name} {split} {images.modality.value}: {len(np.unique(images.persons))} persons, "
                         f"{len(images):,} images{f' (camera {per_camera})' if len(cameras) > 1 else ''}")
        return lines

    def measured(self):
        """Count what is published of every data set: what -> number; of the test alone where there is no training."""
        quantities = {}
        for split, sets in [("training", self.train)] * bool(self.train) + [("test", self.test)]:
            quantities[f"{split} persons"] = len({p for images in sets.values() for p in images.persons.tolist()})
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


# ---- Files of data sets

def existing_root(root, layout):
    """Return the folder of a data set as a Path. Raises UserError: it is missing."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data root {quoted(root)} is missing; expected a folder with {layout}. Set DATASET.ROOT")
    return root


def find_images(root, modality, ids, cameras, split, parent=""):
    """List the images in PARENTcamC/PPPP of all persons and cameras, sorted by person, camera and name: `ImageSet`.

    Files with another ending, and those whose name starts with a dot, are no images of the data set.

    Args: split: for messages. Raises: UserError: there are none.
    """
    rows = []
    for person in ids:
        for camera in cameras:
            folder = f"{parent}cam{camera}/{person:04d}"
            if (root / folder).is_dir():
                names = sorted(p.name for p in (root / folder).iterdir()
                               if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
                rows += [(f"{folder}/{name}", person, camera) for name in names]
    if not rows:
        raise UserError(f"{root / parent} holds no {modality.value} {split} image; expected PPPP/NNNN.jpg in "
                        f"{', '.join(f'cam{c}' for c in cameras)} for the {len(ids)} ids of the {split} split. Check "
                        "DATASET.ROOT and the id files")
    return ImageSet.from_rows(modality, rows)


def require_disjoint(train, test, where, remedy=ORIGINAL):
    """Raise UserError if persons are in training and test. Args: where: what says so, "id files of FOLDER"."""
    if shared := sorted(set(train) & set(test)):
        raise UserError(f"persons {', '.join(map(str, shared[:5]))} ({len(shared)} in all) are in training and test "
                        f"{where}; expected other persons to test. {remedy}")


def require_file(path, remedy):
    """Raise UserError unless a path leads to a file."""
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")


def lines_of(path, layout):
    """Read the lines of a text file. Args: layout: of the data set, for messages. Raises: UserError: it is missing."""
    require_file(path, f"expected {layout}. Unpack the data set again or correct DATASET.ROOT")
    return path.read_text(encoding="utf-8").splitlines()


def read_ids(path, layout):
    """Read the numbers of a file of comma-separated ids, in its order.

    Args: layout: as `lines_of`. Raises: UserError: the file is missing, empty, or holds something else.
    """
    words = [word.strip() for line in lines_of(path, layout) for word in line.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"id file {path} {'holds something else than numbers' if words else 'is empty'}; expected one "
                        f"line of comma-separated ids. {ORIGINAL}")
    return [int(word) for word in words]


def read_image_list(path, layout):
    """Read the (path, label) rows of a list with one image and its integer label a line.

    Raises: UserError: the file is missing or empty, a line is something else, or an image is listed twice.
    """
    rows = []
    for number, line in enumerate(lines_of(path, layout), start=1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise UserError(f"line {number} of {path} is {line[:80]!r}; expected an image path and a label as in "
                            f"'Visible/11/name.bmp 0'. {ORIGINAL}")
        rows.append((words[0].replace("\\", "/"), int(words[1])))
    repeats = len(rows) - len({image for image, _ in rows})
    if not rows or repeats:
        found = f"lists {repeats} of its {len(rows)} images twice" if rows else "is empty"
        raise UserError(f"list {path} {found}; expected one line per image. {ORIGINAL}")
    return rows
