"""RegDB: lists of a trial, both directions, folders per trial, and one test per defect."""
import numpy as np
import pytest

from configs.defaults import load_config
from data import regdb
from tests.trees import edit, regdb_tree
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture
def root(tmp_path):
    return regdb_tree(tmp_path / "RegDB")


def load(root, trial=1):
    return regdb.load(root, trial, check_counts=False)


def test_images_follow_the_lists(root):
    data = load(root, 2)
    lines = (root / "idx" / "train_thermal_2.txt").read_text().split()
    assert data.train[Modality.IR].paths == tuple(lines[::2])
    assert data.train[Modality.IR].persons.tolist() == [int(label) for label in lines[1::2]]
    assert data.trial == 2 and len(data.test[Modality.RGB]) == 4


def test_both_directions_have_one_gallery_of_all_images(root):
    data = load(root, 2)
    assert data.modes == ("v2t", "t2v")
    for mode, query, name in (("v2t", Modality.RGB, "visible to thermal"), ("t2v", Modality.IR, "thermal to visible")):
        retrieval = data.retrieval(mode, 10)
        assert retrieval.protocol == f"RegDB trial 2 {name}"
        assert (retrieval.query_modality, retrieval.rule, retrieval.trials) == (query, "regdb", (2,))
        assert retrieval.query.tolist() == [0, 1, 2, 3]
        assert [gallery.tolist() for gallery in retrieval.galleries] == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match="TEST.PROTOCOL is 'original-1'; RegDB has python"):
        data.retrieval("v2t", 10, "original-1")
    with pytest.raises(UserError, match="DATASET.TRIAL is 11; RegDB has the trials 1 to 10"):
        load(root, 11)


def test_each_trial_has_its_own_folders(root):
    first, second = load(root, 1), load(root, 2)
    assert second.cache_dir() == root / "trial2"
    assert second.cache_dir("/fast") != first.cache_dir("/fast")
    assert second.label_dirs() == (root / "pseudo_labels" / "trial2",)
    assert first.label_dirs() == (root / "pseudo_labels" / "trial1", root / "pseudo_labels")
    assert load_config("configs/regdb.yml", ["DATASET.TRIAL", "7"]).OUTPUT_DIR == "runs/regdb/trial7"


def test_published_counts(root, monkeypatch):
    with pytest.raises(UserError, match="2 training persons instead of 206; 4 training RGB images instead of 2,060; .*"
                                        "4 test IR images instead of 2,060. Unpack"):
        regdb.load(root)
    monkeypatch.setattr(regdb.RegDBDataSet, "published", load(root).measured())
    assert len(regdb.load(root).train[Modality.RGB]) == 4


def relabel(root, change):
    path = root / "idx" / "train_thermal_1.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)))


def into_test(root):
    train = (root / "idx" / "train_visible_1.txt").read_text().split()[0].split("/")[1]
    test = (root / "idx" / "test_visible_1.txt").read_text().split()[0].split("/")[1]
    for sensor in ("visible", "thermal"):
        path = root / "idx" / f"test_{sensor}_1.txt"
        path.write_text(path.read_text().replace(f"/{test}/", f"/{train}/"))


@pytest.mark.parametrize("break_tree, sentence", [
    (lambda root: (root / "idx" / "test_thermal_1.txt").unlink(), "test_thermal_1.txt is missing"),
    (lambda root: (root / "idx" / "test_thermal_1.txt").write_text("\n"), "test_thermal_1.txt is empty"),
    (lambda root: edit(root / "idx" / "train_visible_1.txt", " 0\n", "\n"), "line 1 of .*train_visible_1.txt is"),
    (lambda root: relabel(root, lambda lines: lines + lines[:1]), "lists 1 of its 5 images twice"),
    (lambda root: relabel(root, lambda lines: [f"{line[:-1]}{1 - int(line[-1])}" for line in lines]),
     "2 labels to 2 person folders in 4 combinations"),
    (into_test, r"\(1 in all\) are in training and test lists of trial 1")],
    ids=["no list", "empty list", "no label", "twice", "label order", "overlap"])
def test_broken_trees_are_refused(root, break_tree, sentence):
    break_tree(root)
    with pytest.raises(UserError, match=sentence):
        load(root)


def test_windows_lists(root):
    before = load(root).train[Modality.IR]
    relabel(root, lambda lines: [line.replace("/", "\\") + "\r" for line in lines])
    after = load(root).train[Modality.IR]
    assert after.paths == before.paths and np.array_equal(after.persons, before.persons)
