"""SYSU-MM01, RegDB, LLCM and the demo: order, galleries, counts, and one test per defect of a tree."""
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from configs.defaults import load_config
from data import demo, llcm, regdb, sysu
from data.registry import open_dataset
from tests.trees import edit, llcm_tree, people_tree, permutation_file, regdb_tree
from utils.errors import UserError
from utils.modality import Modality

RGB, IR = Modality
KINDS = {"sysu": (people_tree, sysu), "regdb": (regdb_tree, regdb), "llcm": (llcm_tree, llcm)}


@pytest.fixture
def sysu_root(tmp_path):
    return people_tree(tmp_path / "SYSU")


def shown(data, modality, positions):
    return [data.test[modality].paths[p] for p in positions]


def test_files_of_sysu_sort_by_person_camera_name(sysu_root):
    (sysu_root / "cam1/0002/0001.jpg").rename(sysu_root / "cam1/0002/0003.JPG")
    for name in ("._0001.jpg", "Thumbs.db", "0001.jpg.part"):       # no images
        (sysu_root / "cam1/0001" / name).write_bytes(b"x")
    data = sysu.load(sysu_root, check_counts=False)
    assert data.train[RGB].paths == tuple(
        f"cam{c}/{p:04d}/{n}" for p in (1, 2, 3) for c in (1, 2, 4, 5)
        for n in (("0002.jpg", "0003.JPG") if (c, p) == (1, 2) else ("0001.jpg", "0002.jpg")))
    assert data.train[RGB].persons.tolist() == [p for p in (1, 2, 3) for _ in range(8)]
    assert data.test[IR].cameras.tolist() == [3, 3, 6, 6] * 3
    assert "SYSU-MM01 train ir: 3 persons, 12 images (camera 3: 6, 6: 6)" in data.counts()


def test_selection_is_that_of_the_released_code(golden, tmp_path):
    selection = golden.json("sysu_selection")
    for camera, images in selection["images_per_camera_and_id"].items():
        for person, count in images.items():
            (tmp_path / camera / person).mkdir(parents=True)
            for number in range(1, count + 1):
                (tmp_path / camera / person / f"{number:04d}.jpg").touch()
    persons = {int(person) for images in selection["images_per_camera_and_id"].values() for person in images}
    first, *others = sorted(persons - set(selection["test_ids"]))
    (tmp_path / "exp").mkdir()
    for split, ids in (("train", others), ("val", [first]), ("test", selection["test_ids"])):
        (tmp_path / "exp" / f"{split}_id.txt").write_text(",".join(map(str, ids)))
    data, state = sysu.load(tmp_path, check_counts=False), random.getstate()
    for mode, expected in selection["selection"].items():
        retrieval = data.retrieval(mode, len(expected["gallery"]))
        assert shown(data, IR, retrieval.query) == expected["query"]
        assert [shown(data, RGB, gallery) for gallery in retrieval.galleries] == expected["gallery"]
        assert retrieval.protocol == (f"SYSU-MM01 {mode}-search single-shot, Python seeds 0-"
                                      f"{len(expected['gallery']) - 1}")
    assert random.getstate() == state and data.retrieval().mode == "all"


@pytest.mark.parametrize("shots, kind", [(1, "single-shot"), (10, "10-shot")])
def test_original_galleries_are_the_first_numbers_of_each_permutation(sysu_root, shots, kind):
    rows = permutation_file(sysu_root)
    shutil.rmtree(sysu_root / "cam4" / "0005")
    data = sysu.load(sysu_root, check_counts=False)
    retrieval = data.retrieval("all", 3, f"original-{shots}")
    assert retrieval.protocol == f"SYSU-MM01 all-search {kind}, original permutations 1-3"
    for trial, gallery in zip(retrieval.trials, retrieval.galleries):
        assert shown(data, RGB, gallery) == [
            f"cam{c}/{p:04d}/{n:04d}.jpg" for p in (4, 5, 6) for c in (1, 2, 4, 5) if (c, p) != (4, 5)
            for n in rows[c - 1][p - 1][trial - 1][:shots]]


@pytest.mark.parametrize("prepare, mode, protocol, sentence", [
    (lambda root: None, "all", "original-1", "rand_perm_cam.mat is missing"),
    (lambda root: permutation_file(root, trials=4, images=3), "all", "original-1",
     "permutes 3 images of person 4 in camera 1, but the folder holds 2"),
    (permutation_file, "all", "original-1", "holds 3 trials; TEST.TRIALS is 4"),
    (permutation_file, "all", "original-5", "TEST.PROTOCOL is 'original-5'; SYSU-MM01 has python and original-1 and"),
    (permutation_file, "v2t", "python", "TEST.MODE is 'v2t'; SYSU-MM01 has all and indoor")])
def test_what_no_gallery_is_made_of(sysu_root, prepare, mode, protocol, sentence):
    prepare(sysu_root)
    with pytest.raises(UserError, match=sentence):
        sysu.load(sysu_root, check_counts=False).retrieval(mode, 4, protocol)


def test_images_of_regdb_follow_the_lists_of_the_trial(tmp_path, monkeypatch):
    root = regdb_tree(tmp_path)
    first, data = (regdb.load(root, trial, check_counts=False) for trial in (1, 2))
    path = root / "idx" / "train_thermal_2.txt"
    lines = path.read_text().split()
    assert data.train[IR].paths == tuple(lines[::2])
    assert data.train[IR].persons.tolist() == [int(label) for label in lines[1::2]]
    assert data.trial == 2 and data.modes == ("v2t", "t2v")
    for mode, query, name in (("v2t", RGB, "visible to thermal"), ("t2v", IR, "thermal to visible")):
        retrieval = data.retrieval(mode, 10)
        assert retrieval.protocol == f"RegDB trial 2 {name}"
        assert (retrieval.query_modality, retrieval.rule, retrieval.trials) == (query, "regdb", (2,))
        assert [rows.tolist() for rows in (retrieval.query, *retrieval.galleries)] == [[0, 1, 2, 3]] * 2
    assert data.cache_dir() == root / "trial2" and str(first.cache_dir("/fast")) == "/fast/trial1"
    labels = root / "pseudo_labels"
    assert data.label_dirs() == (labels / "trial2",) and first.label_dirs() == (labels / "trial1", labels)
    assert load_config("configs/regdb.yml", ["DATASET.TRIAL", "7"]).OUTPUT_DIR == "runs/regdb/trial7"
    with pytest.raises(UserError, match="DATASET.TRIAL is 11; RegDB has the trials 1 to 10"):
        regdb.load(root, 11, check_counts=False)
    with pytest.raises(UserError, match="2 training persons instead of 206; .*4 test IR images instead of 2,060. Unp"):
        regdb.load(root, 2)
    monkeypatch.setattr(type(data), "published", data.measured())
    assert regdb.load(root, 2).notes == data.notes == ()
    path.write_text(path.read_text().replace("/", "\\").replace("\n", "\r\n"))      # as written on Windows
    assert regdb.load(root, 2, check_counts=False).train[IR].paths == data.train[IR].paths


def test_training_of_llcm_follows_lists_and_test_the_folders(tmp_path):
    data = llcm.load(llcm_tree(tmp_path), check_counts=False)
    nir = data.train[IR]
    assert nir.paths[:3] == ("train_nir/cam1/0001/0.jpg", "train_nir/cam1/0001/1.jpg", "train_nir/cam2/0001/0.jpg")
    assert nir.persons.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and nir.cameras.tolist() == [1, 1, 2, 2] * 3
    state = random.getstate()
    for mode, query, gallery, cameras in (("v2t", RGB, "nir", (1, 2, 4, 5, 6, 7, 8, 9)),
                                          ("t2v", IR, "vis", range(1, 10))):
        retrieval = data.retrieval(mode, 2)
        assert (retrieval.rule, retrieval.query_modality, len(retrieval.query)) == ("llcm", query,
                                                                                    len(data.test[query]))
        for trial, positions in zip(retrieval.trials, retrieval.galleries):
            random.seed(trial)
            assert shown(data, query.other, positions) == [random.choice([
                f"test_{gallery}/cam{c}/{p:04d}/{n}.jpg" for n in (0, 1)]) for p in (4, 5) for c in cameras]
    random.setstate(state)


@pytest.mark.parametrize("kind, break_tree, sentence", [       # what is missing: tests/test_bad_input.py
    ("sysu", lambda root: (root / "exp/test_id.txt").write_text("4,five"), "something else than numbers"),
    ("sysu", lambda root: edit(root / "exp/test_id.txt", "4", "3,4"), "persons 3 .* in training and test"),
    ("sysu", lambda root: [path.rename(path.with_suffix(".gif")) for path in root.glob("cam*/000[456]/*.jpg")],
     "holds no rgb test image"),
    ("regdb", lambda root: (root / "idx/test_thermal_1.txt").unlink(), "test_thermal_1.txt is missing"),
    ("regdb", lambda root: edit(root / "idx/train_visible_1.txt", " 0\n", "\n"), "line 1 of .*train_visible_1.txt is"),
    ("regdb", lambda root: edit(root / "idx/train_thermal_1.txt", " 1", " 0"), "3 combinations"),
    ("llcm", lambda root: shutil.rmtree(root / "test_vis"), "test_vis holds no rgb test image"),
    ("llcm", lambda root: edit(root / "idx/train_vis.txt", "train_vis/cam1/0001/0.jpg", "test_vis/cam1/0004/0.jpg"),
     r"1 images are in .*train_vis.txt and in the test folders")])
def test_broken_trees_are_refused(tmp_path, kind, break_tree, sentence):
    tree, module = KINDS[kind]
    root = tree(tmp_path / "set")
    break_tree(root)
    with pytest.raises(UserError, match=sentence):
        module.load(root, check_counts=False)


def test_everybody_draws_the_same_people_of_the_demo(tmp_path, monkeypatch):
    """In the layout of SYSU-MM01, and not where that belongs; infrared images are grey, visible ones are not."""
    def files(root):
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    monkeypatch.setattr(demo, "SPLITS", {"train": 1, "val": 1, "test": 1})      # few people and images
    monkeypatch.setattr(demo, "IMAGES", {cam: 1 for cam in range(1, 7)})
    a, b = ((open_dataset("demo", tmp_path / name), files(tmp_path / name))[1] for name in "ab")
    assert a == b and len(set(a.values())) == len(a)
    names = {f"cam{c}/{i:04d}/0001.jpg" for c in range(1, 7) for i in (1, 2, 3)}
    assert names == {name for name in a if name.endswith(".jpg")}
    for name in names:
        spread = np.ptp(np.asarray(Image.open(tmp_path / "a" / name)).astype(int), axis=2).max()
        assert (spread == 0) == name.startswith(("cam3", "cam6"))
    assert load_config(None, ["DATASET.NAME", "demo"]).DATASET.ROOT == "dataset/demo"
