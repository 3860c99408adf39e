"""Own images by images.csv: directions, order, every wrong row by its number, and the ten lines of the documents."""
import csv
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scripts
from trees import write_image

from clustering.quality import known_persons
from data import table
from data.manifest import data_manifest, manifest_differences
from data.registry import open_dataset
from utils.errors import UserError
from utils.modality import Modality

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
    assert data.name == "mine" and data.train[Modality.RGB].paths == ("b.png", "a.png")
    assert data.train[Modality.RGB].persons.tolist() == [1, 2] and data.train[Modality.IR].persons.tolist() == [2, 1]
    assert data.test[Modality.RGB].cameras.tolist() == [1, 3] and known_persons(data.train) is not None
    assert data.modes == ("t2v",)
    retrieval = data.retrieval()
    assert (retrieval.query_modality, retrieval.query.tolist(), [g.tolist() for g in retrieval.galleries]) == (
        Modality.IR, [0], [[0, 1]])
    assert data.test[Modality.RGB].persons[0] == data.test[Modality.IR].persons[0] == 3
    both = table.load(write(tmp_path / "mine", [*ROWS[:4], ["q.png", "test", "ir", "2", "z"], *ROWS[5:]]))
    assert both.modes == ("v2t", "t2v") and both.retrieval("v2t").query.tolist() == [1]
    with pytest.raises(UserError, match="TEST.MODE is 'all'; mine has t2v"):
        data.retrieval("all")


def test_persons_of_training_images_may_be_unknown(tmp_path):
    data = table.load(write(tmp_path / "mine", [[*ROWS[0][:4], ""], *ROWS[1:]]))
    assert known_persons(data.train) is None and data.train[Modality.RGB].persons.tolist() == [-1, -1]


@pytest.mark.parametrize("row, sentence", [
    (["none.png", "train", "rgb", "1", "x"], "row 8 of .* names the image none.png, which is missing"),
    (["../a.png", "train", "rgb", "1", "x"], "row 8 of .* expected a path below the folder"),
    (["/etc/passwd", "train", "rgb", "1", "x"], "row 8 of .* expected a path below the folder"),
    (["./a.png", "test", "rgb", "1", "x"], "row 8 of .* names the image a.png of row 2 again"),
    (["i.png", "train", "depth", "1", "x"], "row 8 of .* has the modality 'depth'; expected rgb, visible"),
    (["i.png", "val", "rgb", "1", "x"], "row 8 of .* has the split 'val'; expected train, query"),
    (["i.png", "train", "rgb", "left", "x"], "row 8 of .* has the camera 'left'; expected a number"),
    (["i.png", "train", "rgb", "-1", "x"], "row 8 of .* has the camera '-1'"),
    (["i.png", "query", "rgb", "1", " "], "row 8 of .* names no person"),
    (["i.png", "query", "rgb", "1"], "row 8 of .* has another number of cells"),
    (["i.png", "query", "rgb", "1", "x", "y"], "row 8 of .* has another number of cells"),
    (["i.png", "query", "rgb", "1", "x"], r"persons x \(1 in all\) are in training and test rows")])
def test_wrong_rows_are_named(tmp_path, row, sentence):
    root = write(tmp_path / "mine", [*ROWS, row])
    write_image(root / "i.png", np.random.default_rng(1))
    with pytest.raises(UserError, match=sentence):
        table.load(root)


@pytest.mark.parametrize("rows, head, sentence", [
    ([], HEAD[:2], "has the columns path, split; expected path, split, modality, camera, person"),
    ([], HEAD, "lists no image"),
    ([row for row in ROWS if row[2] not in ("ir", "thermal")], HEAD, "lists no ir image of the split train"),
    (ROWS[:4], HEAD, "lists nothing to test"), (ROWS[:5], HEAD, "lists nothing to test")])
def test_wrong_tables(tmp_path, rows, head, sentence):
    with pytest.raises(UserError, match=sentence):
        table.load(write(tmp_path / "mine", rows, head))


@pytest.mark.parametrize("row, column, value", [(6, 4, "z"), (5, 3, "4"), (5, 1, "test")])
def test_other_persons_cameras_and_galleries_are_other_data(tmp_path, row, column, value):
    rows = [list(row) for row in ROWS]
    rows[row][column] = value
    before, now = (data_manifest(table.load(write(tmp_path / "mine", of))) for of in (ROWS, rows))
    found = manifest_differences(now, before)
    assert found[-1] == "test rgb images of other persons, cameras, queries or galleries"


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b"\xff\xfe"), lambda path: path.write_text("path,split\n"),
    lambda path: path.write_text('path,split,modality,camera,person\n"a.png,train'), lambda path: None])
def test_what_is_no_table(tmp_path, make):
    make(tmp_path / "images.csv")
    with pytest.raises(UserError, match="images.csv (cannot be read|has the columns|is missing)"):
        table.load(tmp_path)


def test_ten_lines_of_the_documents(tmp_path, monkeypatch):
    """They write a table for training and a test in both directions."""
    rng = np.random.default_rng(0)
    for modality, person in product(("rgb", "ir"), (1, 2, 3, 10, 20)):
        write_image(tmp_path / "mine" / modality / str(person) / "0.png", rng)
    text = (Path(scripts.REPOSITORY) / "docs" / "data.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code, {})      # noqa: S102
    data = open_dataset("csv", "mine")
    assert data.modes == ("v2t", "t2v") and data.retrieval("t2v").protocol == "mine ir to rgb, whole gallery"
    assert all(len(images) for _, images in data.sets())
