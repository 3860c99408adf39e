"""The synthetic data set: same seed same files, the layout of SYSU-MM01, grey infrared, all or nothing."""
import numpy as np
import pytest
from PIL import Image

from configs.defaults import load_config
from data import demo
from data.registry import open_dataset
from utils.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """Few people and images, so that drawing takes a moment."""
    monkeypatch.setattr(demo, "SPLITS", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(demo, "IMAGES", {cam: 1 for cam in range(1, 7)})


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_seed_decides_every_byte(small, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.draw_dataset(tmp_path / name, seed)
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a if name.endswith(".jpg"))


def test_layout(small, tmp_path):
    """That of SYSU-MM01; infrared images are grey, visible ones are not."""
    root = tmp_path / "set"
    demo.draw_dataset(root)
    splits = [{int(word) for word in (root / "exp" / f"{split}_id.txt").read_text().split(",")}
              for split in ("train", "val", "test")]
    assert splits == [{1}, {2}, {3}]
    names = {f"cam{c}/{i:04d}/0001.jpg" for c in range(1, 7) for i in (1, 2, 3)}
    assert names == {name for name in files(root) if name.endswith(".jpg")}
    for path in root.rglob("*.jpg"):
        spread = np.ptp(np.asarray(Image.open(path)).astype(int), axis=2).max()
        assert (spread == 0) == (path.parts[-3] in ("cam3", "cam6"))


def test_infrared_knows_nothing_of_colour():
    person = demo.draw_person(np.random.default_rng(0))
    camera = demo.draw_camera(np.random.default_rng(1), infrared=True)
    before = demo.render(person, camera, np.random.default_rng(2), 64, 32)
    person.shades[:] = 0.5
    assert np.array_equal(before, demo.render(person, camera, np.random.default_rng(2), 64, 32))


def test_interrupted_drawing_leaves_nothing_and_an_existing_folder_is_kept(small, tmp_path, monkeypatch):
    draws = iter(range(20))
    render = demo.render

    def failing(*args):
        if next(draws) == 10:
            raise KeyboardInterrupt
        return render(*args)

    monkeypatch.setattr(demo, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        demo.draw_dataset(tmp_path / "set")
    assert not list(tmp_path.iterdir())
    assert demo.draw_dataset(tmp_path) is None and not list(tmp_path.iterdir())


def test_another_trial_has_people_of_its_own(small, tmp_path):
    """A folder keeps the people of its trial; one that does not say whose they are is taken as it is."""
    open_dataset("demo", tmp_path / "set", 2)
    assert demo.draw_dataset(tmp_path / "set") == 1
    with pytest.raises(UserError, match="holds the people of DATASET.TRIAL 2, not of 1; .* DATASET.ROOT .*set1"):
        open_dataset("demo", tmp_path / "set", 1)
    (tmp_path / "set" / demo.SEED_FILE).unlink()
    open_dataset("demo", tmp_path / "set", 1)


@pytest.mark.parametrize("words, root", [([], "dataset/demo"), (["DATASET.ROOT", "mine"], "mine")])
def test_the_demo_is_not_drawn_where_sysu_belongs(words, root):
    assert load_config(None, ["DATASET.NAME", "demo", *words]).DATASET.ROOT == root
