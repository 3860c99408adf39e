"""Ranked lists and their CSV: their order by hand, and no image that the protocol hides."""
import csv

import numpy as np
import pytest
import torch

from data.records import ImageSet, Retrieval
from data.sysu import SysuDataSet
from processor.evaluate import rank_features
from processor.ranking import save_rankings
from utils.modality import Modality

DEGREES = {Modality.IR: [0, 90, 0], Modality.RGB: [0, 60, 20, 30, 18]}      # direction of each image's feature
PERSONS = {Modality.IR: [1, 2, 9], Modality.RGB: [1, 2, 1, 2, 2]}
CAMERAS = {Modality.IR: [3, 6, 6], Modality.RGB: [2, 1, 1, 2, 4]}
# Query 0 is of camera 3 and does not see camera 2, that is images 0 and 3.
LISTS = [[4, 2, 1], [1, 3, 2, 4, 0], [0, 4, 2, 3, 1]]


@pytest.fixture
def tested():
    """A SYSU-MM01 test of three queries and five gallery images: data set, `Retrieval`, `Evaluation`."""
    sets = {m: ImageSet.from_rows(m, [(f"{m.value}/{i}.png", *of) for i, of in enumerate(zip(PERSONS[m], CAMERAS[m]))])
            for m in Modality}
    angles = {m: np.radians(DEGREES[m]) for m in Modality}
    features = {m: (np.arange(len(a)), torch.from_numpy(np.stack([np.cos(a), np.sin(a)], 1)))
                for m, a in angles.items()}
    data = SysuDataSet("by hand", "", {}, sets)
    retrieval = Retrieval("by hand", "all", "sysu", Modality.IR, np.arange(3), (np.arange(5),), (0,))
    return data, retrieval, rank_features(data, retrieval, features)


def test_as_files(tested, tmp_path):
    """The CSV holds the lists; from features.npz others compute the same distances."""
    data, *pair = tested
    assert [path.name for path in save_rankings(tmp_path, data, *([one] for one in pair))] == [
        "ranking_all.csv", "features.npz"]
    with open(tmp_path / "ranking_all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [[row["gallery"] for row in rows if row["query"] == f"ir/{q}.png"] for q in range(3)]
    assert found == [[f"rgb/{i}.png" for i in row] for row in LISTS]
    assert rows[3] == {"trial": "0", "query": "ir/1.png", "query_person": "2", "query_camera": "6", "rank": "1",
                       "gallery": "rgb/1.png", "gallery_person": "2", "gallery_camera": "1",
                       "distance": f"{1 - np.cos(np.pi / 6):.6f}", "match": "1", "scored": "1"}
    assert {row["query"] for row in rows if row["scored"] == "0"} == {"ir/2.png"}
    with np.load(tmp_path / "features.npz", allow_pickle=False) as arrays:
        distance = 1 - arrays["ir_features"][arrays["all_query"]] @ arrays["rgb_features"][arrays["all_gallery_0"]].T
        assert [arrays["rgb_paths"][i] for i in np.argsort(distance[1], kind="stable")] == found[1]
