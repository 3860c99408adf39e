"""SYSU-MM01 (Wu et al., ICCV 2017) and every data set in its folder layout.

    ROOT/cam1 .. cam6/PPPP/NNNN.jpg             person PPPP; cameras 1 2 4 5 are visible, 3 and 6 infrared
    ROOT/exp/{train,val,test}_id.txt            one line of comma-separated ids each
    ROOT/exp/rand_perm_cam.mat                  galleries of the original protocol; only that needs it
    ROOT/train_{rgb,ir}_resized_*.npy           training images where their folders are not there (data/arrays.py)
"""
import re

import numpy as np

from data.arrays import shared_array
from data.layout import existing_root, find_images, read_ids, require_images
from data.permutations import permuted_galleries
from data.records import DataSet, Retrieval, draw_gallery
from utils.errors import UserError
from utils.modality import Modality

CAMERAS = {Modality.RGB: (1, 2, 4, 5), Modality.IR: (3, 6)}
GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
LAYOUT = "cam1 .. cam6/PPPP/NNNN.jpg and exp/train_id.txt, val_id.txt, test_id.txt"
PATH = re.compile(r"cam(?P<camera>[1-6])/(?P<person>\d{4})/[^/]+$")


class SysuDataSet(DataSet):
    """SYSU-MM01's protocols: infrared queries; visible images of every person and camera as gallery."""

    modes = tuple(GALLERY_CAMERAS)
    protocols = (("python", 1), ("original", 1), ("original", 10))
    published = {"training persons": 395, "training RGB images": 22258, "training IR images": 11909,
                 "test persons": 96, "test IR images": 3803,
                 "all-search gallery images": 301, "indoor-search gallery images": 112}

    def _retrieval(self, mode, trials, protocol, shots):
        """All-search or indoor-search, drawn as the released code does or as rand_perm_cam.mat says."""
        places = self.test[Modality.RGB].places(GALLERY_CAMERAS[mode])
        if protocol == "python":
            numbers, source = tuple(range(trials)), f"Python seeds 0-{trials - 1}"
            galleries = tuple(draw_gallery(places, trial) for trial in numbers)
        else:
            numbers, source = tuple(range(1, trials + 1)), f"original permutations 1-{trials}"
            galleries = permuted_galleries(self.root / "exp" / "rand_perm_cam.mat", places, trials, shots)
        kind = "single-shot" if shots == 1 else f"{shots}-shot"
        return Retrieval(f"{self.name} {mode}-search {kind}, {source}", mode, "sysu", Modality.IR,
                         np.arange(len(self.test[Modality.IR])), galleries, numbers)

    def measured(self):
        """Adds the sizes of both galleries."""
        return {**super().measured(), **{f"{mode}-search gallery images": len(self.test[Modality.RGB].places(cameras))
                                         for mode, cameras in GALLERY_CAMERAS.items()}}


class OtherPeople(SysuDataSet):
    """Other images in SYSU-MM01's layout: no counts are published of them."""

    published = {}


def load(root, name="SYSU-MM01", check_counts=True, kind=SysuDataSet):
    """Read the folders of a data set in SYSU-MM01's layout.

    Args:
        root: the folder; name: of the data set, for tables; check_counts: compare with the published counts;
        kind: `SysuDataSet` or `OtherPeople`.
    Returns:
        `SysuDataSet`; images sorted by person, camera, file name.
    Raises:
        UserError: a folder or file is missing or empty, ids are wrong, or counts differ.
    """
    root = existing_root(root, LAYOUT)
    ids = {split: read_ids(root / "exp" / f"{split}_id.txt", f"{LAYOUT} under {root}")
           for split in ("train", "val", "test")}
    train_ids, test_ids = sorted({*ids["train"], *ids["val"]}), sorted(set(ids["test"]))
    shared = sorted(set(train_ids) & set(test_ids))
    if shared:
        raise UserError(f"persons {shared[:5]} ({len(shared)} in all) are in training and test id files of "
                        f"{root / 'exp'}; expected disjoint sets. Take the id files of the original data set")
    for camera in range(1, 7):
        if not (root / f"cam{camera}").is_dir():
            raise UserError(f"folder {root / f'cam{camera}'} is missing; expected {LAYOUT} under {root}")
    train = {m: _training_images(root, m, train_ids) for m in Modality}
    notes = tuple(f"{m.value} training images come from {images.array}, for {root} has none in its folders"
                  for m, images in train.items() if images.array)
    test = {m: require_images(find_images(root, m, test_ids, cameras), root, test_ids, cameras, "test")
            for m, cameras in CAMERAS.items()}
    data = kind(name, root, train, test, notes=notes)
    return data.check_counts() if check_counts else data


def _training_images(root, modality, ids):
    """The training images of a modality, from the folders or, where those hold none, from a shared array."""
    images = find_images(root, modality, ids, CAMERAS[modality])
    shared = None if len(images) else shared_array(root, modality, _parse)
    if shared is None:
        return require_images(images, root, ids, CAMERAS[modality], "training")
    strangers = set(shared.persons.tolist()) - set(ids)
    foreign = set(shared.cameras.tolist()) - set(CAMERAS[modality])
    if strangers or foreign:
        raise UserError(f"{shared.array} holds images of {len(strangers)} persons outside the training id files of "
                        f"{root / 'exp'} and of {len(foreign)} cameras that are not {modality.value}; expected "
                        "training images alone. Take the array of the same data set")
    return shared


def _parse(path):
    """(path from the root, person, camera) of a file path in this layout, or None."""
    found = PATH.search(path)
    return found and (found[0], int(found["person"]), int(found["camera"]))
