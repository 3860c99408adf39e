"""SYSU-MM01 (Wu et al., ICCV 2017) and every data set in its folder layout.

    ROOT/cam1 .. cam6/PPPP/NNNN.jpg             person PPPP; cameras 1 2 4 5 are visible, 3 and 6 infrared
    ROOT/exp/{train,val,test}_id.txt            one line of comma-separated ids each
"""
import random
from pathlib import Path

import numpy as np

from data.records import DataSet, ImageSet, Retrieval
from utils.errors import UserError
from utils.modality import Modality

CAMERAS = {Modality.RGB: (1, 2, 4, 5), Modality.IR: (3, 6)}
GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
LAYOUT = "cam1 .. cam6/PPPP/NNNN.jpg and exp/train_id.txt, val_id.txt, test_id.txt"
PUBLISHED = {"training persons": 395, "training RGB images": 22258, "training IR images": 11909,
             "test persons": 96, "queries (IR test images)": 3803,
             "all-search gallery images": 301, "indoor-search gallery images": 112}


class SysuDataSet(DataSet):
    """SYSU-MM01's protocol: infrared queries, one random visible image per person and camera as gallery."""

    modes = tuple(GALLERY_CAMERAS)

    def retrieval(self, mode, trials):
        """All-search or indoor-search, single-shot, drawn as the released code does with Python's random."""
        galleries = tuple(self._draw_gallery(GALLERY_CAMERAS[mode], trial) for trial in range(trials))
        return Retrieval(f"{self.name} {mode}-search single-shot, Python seeds 0-{trials - 1}", mode, "sysu",
                         Modality.IR, np.arange(len(self.test[Modality.IR])), galleries, tuple(range(trials)))

    def _draw_gallery(self, cameras, trial):
        """One `random.choice` per person and camera that has images, persons first: (G,) positions.

        The released code calls random.seed(trial) and then the module's functions; the stream is the same.
        """
        rng = random.Random(trial)
        return np.array([rng.choice(places) for places in self._places(cameras)], dtype=np.int64)

    def _places(self, cameras):
        """Positions of the visible test images per person and camera, in ascending order of both."""
        images = self.test[Modality.RGB]
        groups = {}
        for position, (person, camera) in enumerate(zip(images.persons.tolist(), images.cameras.tolist())):
            if camera in cameras:
                groups.setdefault((person, camera), []).append(position)
        return [groups[key] for key in sorted(groups)]

    def published_differences(self):
        """Sentences on every count that differs from the published one; empty if all agree."""
        found = {
            "training persons": len(np.unique(np.concatenate([s.persons for s in self.train.values()]))),
            "training RGB images": len(self.train[Modality.RGB]),
            "training IR images": len(self.train[Modality.IR]),
            "test persons": len(np.unique(np.concatenate([s.persons for s in self.test.values()]))),
            "queries (IR test images)": len(self.test[Modality.IR]),
            "all-search gallery images": len(self._places(GALLERY_CAMERAS["all"])),
            "indoor-search gallery images": len(self._places(GALLERY_CAMERAS["indoor"])),
        }
        return [f"{found[k]} {k} instead of {PUBLISHED[k]}" for k in PUBLISHED if found[k] != PUBLISHED[k]]


def load(root, name="SYSU-MM01", check_counts=True):
    """Read the folders of a data set in SYSU-MM01's layout.

    Args:
        root: the folder; name: of the data set, for tables; check_counts: compare with the published counts.
    Returns:
        `SysuDataSet`; images sorted by person, camera, file name.
    Raises:
        UserError: a folder or file is missing or empty, ids are wrong, or counts differ.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data root {root} is missing; expected a folder with {LAYOUT}. Set DATASET.ROOT")
    train_ids = sorted({*_read_ids(root, "train"), *_read_ids(root, "val")})
    test_ids = sorted(_read_ids(root, "test"))
    shared = sorted(set(train_ids) & set(test_ids))
    if shared:
        raise UserError(f"persons {shared[:5]} ({len(shared)} in all) are in training and test id files of "
                        f"{root / 'exp'}; expected disjoint sets. Take the id files of the original data set")
    for camera in range(1, 7):
        if not (root / f"cam{camera}").is_dir():
            raise UserError(f"folder {root / f'cam{camera}'} is missing; expected {LAYOUT} under {root}")
    data = SysuDataSet(name, root, {m: _read_images(root, m, train_ids, "training") for m in Modality},
                       {m: _read_images(root, m, test_ids, "test") for m in Modality}, root)
    differences = data.published_differences() if check_counts else []
    if differences:
        raise UserError(f"{root} holds {'; '.join(differences)}. Unpack the whole data set again, or set "
                        "DATASET.CHECK_COUNTS False (process.py: --allow-partial) for a subset or people of your own")
    return data


def _read_ids(root, split):
    path = root / "exp" / f"{split}_id.txt"
    if not path.is_file():
        raise UserError(f"id file {path} is missing; expected {LAYOUT} under {root}")
    try:
        return [int(word) for word in path.read_text().replace("\n", ",").split(",") if word.strip()]
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"id file {path} holds something else than numbers; expected one line of comma-separated "
                        "ids. Take the file of the original data set")


def _read_images(root, modality, ids, split):
    rows = []
    for person in ids:
        for camera in CAMERAS[modality]:
            folder = root / f"cam{camera}" / f"{person:04d}"
            if folder.is_dir():
                rows += [(f"cam{camera}/{person:04d}/{name}", person, camera)
                         for name in sorted(p.name for p in folder.iterdir()
                                            if p.suffix.lower() in IMAGE_ENDINGS)]
    if not rows:
        cameras = ", ".join(f"cam{c}" for c in CAMERAS[modality])
        raise UserError(f"{root} holds no {modality.value} {split} image; expected PPPP/NNNN.jpg in {cameras} for the "
                        f"{len(ids)} ids of the {split} split. Check DATASET.ROOT and the id files")
    return ImageSet.from_rows(modality, rows)
