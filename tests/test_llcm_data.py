"""LLCM: lists and folders, galleries of both directions, counts that warn, and one test per defect."""
import random
import shutil

import pytest

from data import llcm
from tests.trees import edit, llcm_tree
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture
def root(tmp_path):
    return llcm_tree(tmp_path / "LLCM")


def load(root):
    return llcm.load(root, check_counts=False)


def test_training_follows_lists_and_test_the_folders(root):
    data = load(root)
    nir = data.train[Modality.IR]
    assert nir.paths[:3] == ("train_nir/cam1/0001/0.jpg", "train_nir/cam1/0001/1.jpg", "train_nir/cam2/0001/0.jpg")
    assert nir.persons.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert nir.cameras.tolist() == [1, 1, 2, 2] * 3
    assert sorted(set(data.test[Modality.RGB].cameras)) == list(range(1, 10))
    assert sorted(set(data.test[Modality.IR].cameras)) == [1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("mode, query, gallery, cameras", [
    ("v2t", Modality.RGB, "nir", (1, 2, 4, 5, 6, 7, 8, 9)), ("t2v", Modality.IR, "vis", range(1, 10))])
def test_galleries_are_those_of_a_seeded_module(root, mode, query, gallery, cameras):
    data = load(root)
    retrieval = data.retrieval(mode, 2)
    assert (retrieval.rule, retrieval.query_modality, len(retrieval.query)) == ("llcm", query, len(data.test[query]))
    assert "Python seeds 0-1" in retrieval.protocol
    state = random.getstate()
    for trial, positions in zip(retrieval.trials, retrieval.galleries):
        random.seed(trial)
        assert [data.test[query.other].paths[p] for p in positions] == [
            random.choice([f"test_{gallery}/cam{c}/{p:04d}/{n}.jpg" for n in (0, 1)]) for p in (4, 5) for c in cameras]
    random.setstate(state)


def test_other_counts_warn(root):
    note, = llcm.load(root).notes
    assert "3 training persons instead of 713; 12 training RGB images instead of 16,946" in note
    assert load(root).notes == ()


@pytest.mark.parametrize("break_tree, sentence", [
    (lambda root: (root / "idx" / "train_nir.txt").unlink(), "train_nir.txt is missing"),
    (lambda root: (root / "idx" / "test_id.txt").write_text("a"), "something else than numbers"),
    (lambda root: shutil.rmtree(root / "test_vis"), "test_vis holds no rgb test image"),
    (lambda root: edit(root / "idx" / "train_vis.txt", "train_vis/cam1/0001/0.jpg", "test_vis/cam1/0004/0.jpg"),
     r"1 images are in .*train_vis.txt and in the test folders"),
], ids=["no list", "words", "no test folder", "training image in test"])
def test_broken_trees_are_refused(root, break_tree, sentence):
    break_tree(root)
    with pytest.raises(UserError, match=sentence):
        load(root)
