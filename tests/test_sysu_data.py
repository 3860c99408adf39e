"""SYSU-MM01: order, both protocols, counts, and one test per defect of a tree."""
import random
import shutil

import pytest

from data import sysu
from tests.trees import edit, permutation_file, sysu_tree
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture
def root(tmp_path):
    return sysu_tree(tmp_path / "SYSU")


def load(root):
    return sysu.load(root, check_counts=False)


def shown(data, modality, positions):
    return [data.test[modality].paths[p] for p in positions]


def test_files_sort_by_person_camera_name(root):
    data = load(root)
    rgb = data.train[Modality.RGB]
    assert rgb.paths == tuple(f"cam{c}/{p:04d}/{n:04d}.jpg" for p in (1, 2, 3) for c in (1, 2, 4, 5) for n in (1, 2))
    assert rgb.persons.tolist() == [p for p in (1, 2, 3) for _ in range(8)]
    assert data.test[Modality.IR].cameras.tolist() == [3, 3, 6, 6] * 3


def test_python_galleries_are_those_of_a_seeded_module(root):
    data = load(root)
    before = random.getstate()
    retrieval = data.retrieval("indoor", 3)
    assert random.getstate() == before
    assert retrieval.protocol == "SYSU-MM01 indoor-search single-shot, Python seeds 0-2"
    for trial, gallery in zip(retrieval.trials, retrieval.galleries):
        random.seed(trial)
        assert shown(data, Modality.RGB, gallery) == [
            random.choice([f"cam{c}/{p:04d}/{n:04d}.jpg" for n in (1, 2)]) for p in (4, 5, 6) for c in (1, 2)]
    random.setstate(before)
    assert data.retrieval().mode == "all"
    with pytest.raises(UserError, match="TEST.MODE is 'v2t'; SYSU-MM01 has all and indoor"):
        data.retrieval("v2t")


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
    data = load(tmp_path)
    for mode, expected in selection["selection"].items():
        retrieval = data.retrieval(mode, len(expected["gallery"]))
        assert shown(data, Modality.IR, retrieval.query) == expected["query"]
        assert [shown(data, Modality.RGB, gallery) for gallery in retrieval.galleries] == expected["gallery"]


@pytest.mark.parametrize("shots", [1, 10])
def test_original_galleries_are_the_first_numbers_of_each_permutation(root, shots):
    rows = permutation_file(root)
    shutil.rmtree(root / "cam4" / "0005")
    data = load(root)
    retrieval = data.retrieval("all", 3, f"original-{shots}")
    kind = {1: "single-shot", 10: "10-shot"}[shots]
    assert retrieval.protocol == f"SYSU-MM01 all-search {kind}, original permutations 1-3"
    for trial, gallery in zip(retrieval.trials, retrieval.galleries):
        assert shown(data, Modality.RGB, gallery) == [
            f"cam{c}/{p:04d}/{n:04d}.jpg" for p in (4, 5, 6) for c in (1, 2, 4, 5) if (c, p) != (4, 5)
            for n in rows[c - 1][p - 1][trial - 1][:shots]]


def crashing_file(root):
    """A file with one wrong byte, a cell's type, at which SciPy's reader crashes."""
    permutation_file(root)
    path = root / "exp" / "rand_perm_cam.mat"
    content = path.read_bytes()
    path.write_bytes(content[:144] + b"\6" + content[145:])


@pytest.mark.parametrize("prepare, protocol, sentence", [
    (lambda root: None, "original-1", "rand_perm_cam.mat is missing"),
    (crashing_file, "original-1", "rand_perm_cam.mat cannot be read"),
    (lambda root: permutation_file(root, trials=4, persons=5), "original-1",
     "no permutations for person 6 in camera 1"),
    (lambda root: permutation_file(root, trials=4, images=3), "original-1",
     "permutes 3 images of person 4 in camera 1, but the folder holds 2"),
    (permutation_file, "original-1", "holds 3 trials; TEST.TRIALS is 4"),
    (permutation_file, "original-5", "TEST.PROTOCOL is 'original-5'; SYSU-MM01 has python and original-1 and orig")])
def test_original_protocol_refuses_what_it_cannot_do(root, prepare, protocol, sentence):
    prepare(root)
    with pytest.raises(UserError, match=sentence):
        load(root).retrieval("all", 4, protocol)


def test_published_counts_are_accepted_and_others_listed(root, monkeypatch):
    data = load(root)
    assert "SYSU-MM01 train ir: 3 persons, 12 images (camera 3: 6, 6: 6)" in data.counts()
    assert sysu.load(root, "own people", kind=sysu.OtherPeople).name == "own people"        # no counts are published
    monkeypatch.setattr(sysu.SysuDataSet, "published", data.measured())
    assert len(sysu.load(root).train[Modality.IR]) == 12
    monkeypatch.setattr(sysu.SysuDataSet, "published", {**data.measured(), "training persons": 395,
                                                        "training IR images": 11909})
    with pytest.raises(UserError, match="holds 3 training persons instead of 395; 12 training IR images instead of "
                                        "11,909. Unpack"):
        sysu.load(root)


@pytest.mark.parametrize("break_tree, sentence", [
    (lambda root: shutil.rmtree(root / "cam3"), "cam3 is missing"),
    (lambda root: (root / "exp" / "val_id.txt").unlink(), "val_id.txt is missing"),
    (lambda root: (root / "exp" / "test_id.txt").write_text(""), "test_id.txt is empty"),
    (lambda root: (root / "exp" / "test_id.txt").write_text("4,five"), "something else than numbers"),
    (lambda root: edit(root / "exp" / "test_id.txt", "4", "3,4"), "persons 3 .* in training and test"),
    (lambda root: [shutil.rmtree(root / f"cam{c}" / f"{p:04d}") for c in (3, 6) for p in (1, 2, 3)],
     "holds no ir training image"),
    (lambda root: [path.rename(path.with_suffix(".gif")) for path in root.glob("cam*/000[456]/*.jpg")],
     "holds no rgb test image"),
    (lambda root: root.rename(root.with_name("elsewhere")), "data root .* is missing"),
], ids=["camera", "id file", "empty ids", "words", "overlap", "no training images", "wrong extension", "root"])
def test_broken_trees_are_refused(root, break_tree, sentence):
    break_tree(root)
    with pytest.raises(UserError, match=sentence):
        load(root)


def test_hidden_and_foreign_files_are_no_images(root):
    before = load(root).train[Modality.RGB].paths
    for name in ("._0001.jpg", "Thumbs.db", "0001.jpg.part"):
        (root / "cam1" / "0001" / name).write_bytes(b"x")
    (root / "cam1" / "0002" / "0003.JPG").write_bytes((root / "cam1" / "0002" / "0001.jpg").read_bytes())
    after = load(root).train[Modality.RGB].paths
    assert set(after) - set(before) == {"cam1/0002/0003.JPG"}
