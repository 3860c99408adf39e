"""The bounds of tools/bounds.py, which alone tells training the identities."""
import json

import numpy as np
import pytest
import scripts
import trees

import processor.train
from report.write import write_run_page
from tools import bounds
from utils.modality import Modality


def test_true_links_join_clusters_of_one_person():
    persons = {Modality.RGB: np.array([7, 7, 7, 8, 8, 9, 9]), Modality.IR: np.array([8, 8, 7, 7, 7, 7, 5])}
    labels = {Modality.RGB: np.array([0, 0, 1, 2, 2, 3, -1]), Modality.IR: np.array([0, 0, 1, 2, 2, 2, 3])}
    links = bounds.true_links(labels, persons)
    assert links.rgb_to_ir.tolist() == [2, 2, 0, -1]        # of person 7's two IR clusters the larger one
    assert links.ir_to_rgb.tolist() == [2, 0, 0, -1]


@pytest.mark.parametrize("bound, method", [("links", "pgm"), ("labels", "cclnet")])
def test_a_bound_is_trained_in_a_folder_of_its_own(bound, method, tmp_path, tiny_clip_file, monkeypatch):
    scripts.without_report(monkeypatch)
    data, ordinary = trees.people_tree(tmp_path / "data"), processor.train.start_memory
    words = scripts.settings(DATASET__ROOT=data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=tmp_path / "run",
                             PREPARE__EPOCHS=2, METHOD__NAME=method)
    monkeypatch.chdir(scripts.REPOSITORY)
    assert scripts.call(bounds, [bound, "train_prepare", *words]) == 0
    folder = tmp_path / f"run-true-{bound}"
    assert f"true {bound}" in (folder / "BOUND.txt").read_text() and not (tmp_path / "run").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["links"] > 0 and all(row["matching_accuracy"] == 1 for row in rows if row["links"])
    assert all((row["ari_rgb"] == row["ari_ir"] == 1) == (bound == "labels") for row in rows)
    assert processor.train.start_memory is ordinary
    assert scripts.call(bounds, [bound, "train_prepare", "--fresh", *words]) == 0
    assert (folder / "metrics.jsonl").read_text().count("\n") == len(rows) and list(folder.glob("old-*"))
    page = write_run_page(folder).read_text()
    assert "<dt>Bound, not a result</dt>" in page and f"true {bound}" in page
    about = json.loads((folder / "report_data/run-train_prepare.json").read_text())
    assert about["method"] == {"pgm": "PGM", "cclnet": "CCLNet"}[method]        # as the page names it


def test_a_mistake_is_one_sentence(capsys):
    assert scripts.call(bounds, ["faces", "train_prepare"]) == 2
    assert capsys.readouterr().err.startswith("error: the command line is not understood: argument bound")
