"""Own images by images.csv: directions, order, every wrong row by its number."""
import csv

import numpy as np
import pytest
from trees import write_image

from clustering.quality import known_persons
from data import table
from data.manifest import data_manifest, manifest_differences
from data.registry import open_dataset
from utils.errors import UserError
from utils.modality import Modality

RGB, IR = Modality
HEAD = list(table.COLUMNS)
ROWS = [["b.png", "train", "rgb", "1", "x"], ["a.png", "train", "visible", "1", "y"],
        ["c.png", "train", "ir", "2", "y"], ["d.png", "train", "thermal", "2", "x"],
        ["q.png", "query", "ir", "2", "z"], ["g.png", "gallery", "rgb", "1", "z"], ["h.png", "test", "rgb", "3", "10"]]


def write(root, rows, head=HEAD):
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for name in "abcdqgh":
        write_image(root / f"{name}.png", rng)
    with open(root / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return root


def test_images_in_the_order_of_the_rows(tmp_path):
    data = open_dataset("csv", write(tmp_path / "mine", ROWS))
    assert data.name == "mine" and data.train[RGB].paths == ("b.png", "a.png")
    assert data.train[RGB].persons.tolist() == [1, 2] and data.train[IR].persons.tolist() == [2, 1]
    assert data.test[RGB].cameras.tolist() == [1, 3] and known_persons(data.train) is not None
    assert data.test[RGB].persons[0] == data.test[IR].persons[0] == 3 and data.modes == ("t2v",)
    retrieval = data.retrieval()
    assert (retrieval.query_modality, retrieval.query.tolist(), [g.tolist() for g in retrieval.galleries]) == (
        IR, [0], [[0, 1]])
    both = table.load(write(tmp_path / "mine", [*ROWS[:4], ["q.png", "test", "ir", "2", "z"], *ROWS[5:]]))
    assert both.modes == ("v2t", "t2v") and both.retrieval("v2t").query.tolist() == [1]
    unknown = table.load(write(tmp_path / "mine", [[*ROWS[0][:4], ""], *ROWS[1:]]))     # the person of one image
    assert known_persons(unknown.train) is None and unknown.train[RGB].persons.tolist() == [-1, -1]


@pytest.mark.parametrize("row, sentence", [
    (["none.png", "train", "rgb", "1", "x"], "row 8 of .* names the image none.png, which is missing"),
    (["../a.png", "train", "rgb", "1", "x"], "row 8 of .* expected a path below the folder"),
    (["./a.png", "test", "rgb", "1", "x"], "row 8 of .* names the image a.png of row 2 again"),
    (["i.png", "train", "depth", "1", "x"], "row 8 of .* has the modality 'depth'; expected rgb, visible"),
    (["i.png", "train", "rgb", "left", "x"], "row 8 of .* has the camera 'left'; expected a number"),
    (["i.png", "query", "rgb", "1", "x", "y"], "row 8 of .* has another number of cells"),
    (["i.png", "query", "rgb", "1", "x"], r"persons x \(1 in all\) are in training and test rows")])
def test_wrong_rows_are_named(tmp_path, row, sentence):
    root = write(tmp_path / "mine", [*ROWS, row])
    write_image(root / "i.png", np.random.default_rng(1))
    with pytest.raises(UserError, match=sentence):
        table.load(root)


@pytest.mark.parametrize("rows, head, sentence", [
    ([], HEAD[:2], "has the columns path, split; expected path, split, modality, camera, person"),
    ([row for row in ROWS if row[2] not in ("ir", "thermal")], HEAD, "lists no ir image of the split train"),
    (ROWS[:5], HEAD, "lists nothing to test")])
def test_wrong_tables(tmp_path, rows, head, sentence):
    with pytest.raises(UserError, match=sentence):
        table.load(write(tmp_path / "mine", rows, head))


@pytest.mark.parametrize("row, column, value", [(6, 4, "z"), (5, 1, "test")])
def test_other_persons_cameras_and_galleries_are_other_data(tmp_path, row, column, value):
    rows = [list(row) for row in ROWS]
    rows[row][column] = value
    before, now = (data_manifest(table.load(write(tmp_path / "mine", of))) for of in (ROWS, rows))
    found = manifest_differences(now, before)
    assert found[-1] == "test rgb images of other persons, cameras, queries or galleries"
