"""RegDB (Nguyen et al., Sensors 2017): ten splits, each with its own training and test.

    ROOT/idx/{train,test}_{visible,thermal}_{1..10}.txt     lines "Visible/11/name.bmp 0": image, label of the person
    ROOT/Visible/PPP/*.bmp, ROOT/Thermal/PPP/*.bmp          thermal images may have one channel
"""
from pathlib import PurePosixPath

import numpy as np

from data import records
from data.records import CROSS_MODES, DataSet, ImageSet, Retrieval
from utils.errors import UserError
from utils.modality import Modality

TRIALS = 10
SENSORS = {Modality.RGB: "visible", Modality.IR: "thermal"}
LAYOUT = "Visible/PPP/*.bmp, Thermal/PPP/*.bmp and idx/{train,test}_{visible,thermal}_{1..10}.txt"


class RegDBDataSet(DataSet):
    """RegDB's protocol: all test images of one modality are searched among all of the other."""

    modes = tuple(CROSS_MODES)
    published = {"training persons": 206, "training RGB images": 2060, "training IR images": 2060,
                 "test persons": 206, "test RGB images": 2060, "test IR images": 2060}

    def _retrieval(self, mode, trials, protocol):
        """Select all images of one modality as query, all of the other as gallery."""
        query = CROSS_MODES[mode]
        name = f"{self.name} trial {self.trial}" if self.trial else self.name       # images of a file are of no trial
        return Retrieval(f"{name} {SENSORS[query]} to {SENSORS[query.other]}", mode, "regdb",
                         query, np.arange(len(self.test[query])), (np.arange(len(self.test[query.other])),),
                         (self.trial,))


def load(root, trial=1, check_counts=True):
    """Read the lists of one split.

    Args: trial: 1 to 10; check_counts: compare with the published counts.
    Returns: `RegDBDataSet`; images in the order of the lists; persons are the labels of the split's lists.
    Raises: UserError: a list is missing or wrong, a person is in training and test, or counts differ.
    """
    root = records.existing_root(root, LAYOUT)
    if not 1 <= trial <= TRIALS:
        raise UserError(f"DATASET.TRIAL is {trial}; RegDB has the trials 1 to {TRIALS}")
    folders, sets = {}, {}
    for split in ("train", "test"):
        lists = {m: root / "idx" / f"{split}_{sensor}_{trial}.txt" for m, sensor in SENSORS.items()}
        rows = {m: records.read_image_list(path, LAYOUT) for m, path in lists.items()}
        pairs = {(PurePosixPath(path).parent.name, label) for m in rows for path, label in rows[m]}
        folders[split], labels = ({pair[i] for pair in pairs} for i in (0, 1))
        if not len(folders[split]) == len(labels) == len(pairs):
            raise UserError(f"{' and '.join(map(str, lists.values()))} give {len(labels)} labels to "
                            f"{len(folders[split])} person folders in {len(pairs)} combinations; expected one label "
                            "per folder, the same in both lists. Take the lists of the original data set")
        sets[split] = {m: ImageSet.from_rows(m, [(path, label, camera) for path, label in rows[m]])
                       for camera, m in enumerate(SENSORS, start=1)}
    records.require_disjoint(folders["train"], folders["test"], f"lists of trial {trial} in {root / 'idx'}")
    data = RegDBDataSet("RegDB", root, sets["train"], sets["test"], trial)
    return data.check_counts() if check_counts else data
