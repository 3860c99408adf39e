"""LLCM (Zhang and Wang, CVPR 2023): people in low light, nine visible and eight near-infrared cameras.

    ROOT/idx/train_{vis,nir}.txt                lines "path label": image, label of the person
    ROOT/idx/test_id.txt                        one line of comma-separated ids
    ROOT/test_{vis,nir}/camC/PPPP/*.jpg         person PPPP; C is 1-9 (visible) or 1 2 4-9 (near-infrared)
"""
import re

import numpy as np

from data import records
from data.records import CROSS_MODES, DataSet, ImageSet, Retrieval
from utils.errors import UserError
from utils.modality import Modality

SENSORS = {Modality.RGB: "vis", Modality.IR: "nir"}
CAMERAS = {Modality.RGB: tuple(range(1, 10)), Modality.IR: (1, 2, 4, 5, 6, 7, 8, 9)}
LAYOUT = "idx/train_vis.txt, train_nir.txt, test_id.txt and test_vis, test_nir with camC/PPPP/*.jpg"
CAMERA_FOLDER = re.compile(r"(?:^|/)cam(\d+)/")


class LLCMDataSet(DataSet):
    """LLCM's protocol: all test images of one modality; of the other, one random image per person and camera."""

    modes = tuple(CROSS_MODES)
    published = {"training persons": 713, "training RGB images": 16946, "training IR images": 13975,
                 "test persons": 351, "test RGB images": 8680, "test IR images": 7166}
    counts_bind = False

    def _retrieval(self, mode, trials, protocol):
        """Draw galleries as SYSU-MM01's are drawn."""
        query = CROSS_MODES[mode]
        groups = self.test[query.other].by_person_and_camera()
        return Retrieval(f"{self.name} {SENSORS[query]} to {SENSORS[query.other]} single-shot, Python seeds "
                         f"0-{trials - 1}", mode, "llcm", query, np.arange(len(self.test[query])),
                         tuple(records.draw_gallery(groups, trial) for trial in range(trials)), tuple(range(trials)))


def load(root, trial=1, check_counts=True):
    """Read lists and test folders.

    Args: trial: without effect: there is one split; check_counts: note differences from the published counts, which
        are no error.
    Returns: `LLCMDataSet`; training images in the order of the lists, camera 0 where the path names none.
    Raises: UserError: a file or folder is missing or wrong, or an image is in training and test.
    """
    root = records.existing_root(root, LAYOUT)
    test_ids = sorted(set(records.read_ids(root / "idx" / "test_id.txt", LAYOUT)))
    train, test = {}, {}
    for m, sensor in SENSORS.items():
        rows = records.read_image_list(root / "idx" / f"train_{sensor}.txt", LAYOUT)
        cameras = [int(found[1]) if (found := CAMERA_FOLDER.search(path)) else 0 for path, _ in rows]
        train[m] = ImageSet.from_rows(m, [(*row, camera) for row, camera in zip(rows, cameras)])
        test[m] = records.find_images(root, m, test_ids, CAMERAS[m], "test", f"test_{sensor}/")
        shared = set(train[m].paths) & set(test[m].paths)
        if shared:
            raise UserError(f"{len(shared)} images are in {root / 'idx' / f'train_{sensor}.txt'} and in the test "
                            f"folders ({min(shared)} is one); expected disjoint sets. Take the lists of the original "
                            "data set")
    data = LLCMDataSet("LLCM", root, train, test)
    return data.check_counts() if check_counts else data
