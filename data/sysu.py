"""SYSU-MM01 (Wu et al., ICCV 2017) and every data set in its folder layout.

    ROOT/cam1 .. cam6/PPPP/NNNN.jpg             person PPPP; cameras 1 2 4 5 are visible, 3 and 6 infrared
    ROOT/exp/{train,val,test}_id.txt            one line of comma-separated ids each
    ROOT/exp/rand_perm_cam.mat                  galleries of the original protocol; only that needs it
"""
import numpy as np
from scipy.io import loadmat

from data import records
from data.records import ORIGINAL, DataSet, Retrieval, find_images, read_ids, require_disjoint
from utils.errors import UserError, explained
from utils.modality import Modality

CAMERAS = {Modality.RGB: (1, 2, 4, 5), Modality.IR: (3, 6)}
GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
LAYOUT = "cam1 .. cam6/PPPP/NNNN.jpg and exp/train_id.txt, val_id.txt, test_id.txt"


class SysuDataSet(DataSet):
    """SYSU-MM01's protocols: infrared queries; visible images of every person and camera as gallery."""

    modes = tuple(GALLERY_CAMERAS)
    protocols = ("python", "original-1", "original-10")
    published = {"training persons": 395, "training RGB images": 22258, "training IR images": 11909,
                 "test persons": 96, "test IR images": 3803,
                 "all-search gallery images": 301, "indoor-search gallery images": 112}

    def _retrieval(self, mode, trials, protocol):
        """Select for all-search or indoor-search, as the released code does or as rand_perm_cam.mat says."""
        groups, shots = self.test[Modality.RGB].by_person_and_camera(GALLERY_CAMERAS[mode]), 1
        if protocol == "python":
            numbers, source = tuple(range(trials)), f"Python seeds 0-{trials - 1}"
            galleries = tuple(records.draw_gallery(groups, trial) for trial in numbers)
        else:
            shots = int(protocol.removeprefix("original-"))
            numbers, source = tuple(range(1, trials + 1)), f"original permutations 1-{trials}"
            galleries = permuted_galleries(self.root / "exp" / "rand_perm_cam.mat", groups, trials, shots)
        kind = "single-shot" if shots == 1 else f"{shots}-shot"
        return Retrieval(f"{self.name} {mode}-search {kind}, {source}", mode, "sysu", Modality.IR,
                         np.arange(len(self.test[Modality.IR])), galleries, numbers)

    def measured(self):
        """Count the images of both galleries too."""
        galleries = {f"{mode}-search gallery images": len(self.test[Modality.RGB].by_person_and_camera(cameras))
                     for mode, cameras in GALLERY_CAMERAS.items()}
        return {**super().measured(), **galleries}


def load(root, trial=1, check_counts=True, name="SYSU-MM01", kind=SysuDataSet):
    """Read the folders of a data set in SYSU-MM01's layout.

    Args: root: the folder; trial: without effect: there is one split; check_counts: compare with the published counts;
        name: of the data set, for tables; kind: `SysuDataSet` or a subclass.
    Returns: `kind`; images sorted by person, camera, file name.
    Raises: UserError: a folder or file is missing or empty, ids are wrong, or counts differ.
    """
    root = records.existing_root(root, LAYOUT)
    ids = {split: read_ids(root / "exp" / f"{split}_id.txt", f"{LAYOUT} under {root}")
           for split in ("train", "val", "test")}
    train_ids, test_ids = sorted({*ids["train"], *ids["val"]}), sorted(set(ids["test"]))
    require_disjoint(train_ids, test_ids, f"id files of {root / 'exp'}")
    for camera in range(1, 7):
        if not (root / f"cam{camera}").is_dir():
            raise UserError(f"folder {root / f'cam{camera}'} is missing; expected {LAYOUT} under {root}")
    train, test = ({m: find_images(root, m, of_split, cameras, split) for m, cameras in CAMERAS.items()}
                   for split, of_split in (("training", train_ids), ("test", test_ids)))
    data = kind(name, root, train, test)
    return data.check_counts() if check_counts else data


def permuted_galleries(path, groups, trials, shots):
    """Read the gallery of each trial: per person and camera the first images of the trial's permutation.

    Args:
        path: of rand_perm_cam.mat: a cell per camera, in it a cell per person (both counted from 1), in it
        (trials, images) with a permutation of the image numbers 1 to n in every row;
        groups: of `ImageSet.by_person_and_camera`; shots: images per person and camera, or all where there are fewer.
    Returns: tuple of `trials` arrays (G,), positions.
    Raises: UserError: the file is missing or damaged, or its permutations do not belong to these images.
    """
    records.require_file(path, "TEST.PROTOCOL original-1 and original-10 read their galleries there. Take the file of "
                               "the original data set, or set TEST.PROTOCOL python")
    galleries = [[] for _ in range(trials)]
    with explained(f"{path} cannot be read", f"expected the MATLAB variable rand_perm_cam, a cell per camera and in it "
                                             f"a cell per person. {ORIGINAL}"):
        cells = loadmat(path, variable_names=["rand_perm_cam"])["rand_perm_cam"].ravel()
        permutations = {(person, camera): np.atleast_2d(cells[camera - 1].ravel()[person - 1].astype(np.int64))
                        for person, camera in groups}
    for (person, camera), positions in groups.items():
        rows = permutations[person, camera]
        if rows.shape[1] != len(positions) or (np.sort(rows, axis=1) != np.arange(1, len(positions) + 1)).any():
            raise UserError(f"{path} permutes {rows.shape[1]} images of person {person} in camera {camera}, but the "
                            f"folder holds {len(positions)}; expected the same images. Take file and folders of the "
                            "original data set")
        if len(rows) < trials:
            raise UserError(f"{path} holds {len(rows)} trials; TEST.TRIALS is {trials}. Set it to {len(rows)} or less")
        for gallery, row in zip(galleries, rows):
            gallery.extend(positions[number - 1] for number in row[:shots])
    return tuple(np.array(gallery, dtype=np.int64) for gallery in galleries)
