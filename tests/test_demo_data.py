"""The synthetic data set: the same files everywhere, the layout of SYSU-MM01, grey infrared, all or nothing."""
import numpy as np
import pytest
from PIL import Image

from configs.defaults import load_config
from data import demo
from data.registry import open_dataset


@pytest.fixture
def small(monkeypatch):
    """Few people and images, so that drawing takes a moment."""
    monkeypatch.setattr(demo, "SPLITS", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(demo, "IMAGES", {cam: 1 for cam in range(1, 7)})


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_everybody_draws_the_same_people(small, tmp_path):
    """In the layout of SYSU-MM01; infrared images are grey, visible ones are not."""
    a, b = ((open_dataset("demo", tmp_path / name), files(tmp_path / name))[1] for name in "ab")
    assert a == b and len(set(a.values())) == len(a)
    names = {f"cam{c}/{i:04d}/0001.jpg" for c in range(1, 7) for i in (1, 2, 3)}
    assert names == {name for name in a if name.endswith(".jpg")}
    for name in names:
        spread = np.ptp(np.asarray(Image.open(tmp_path / "a" / name)).astype(int), axis=2).max()
        assert (spread == 0) == name.startswith(("cam3", "cam6"))


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
    demo.draw_dataset(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, root", [([], "dataset/demo"), (["DATASET.ROOT", "mine"], "mine")])
def test_the_demo_is_not_drawn_where_sysu_belongs(words, root):
    assert load_config(None, ["DATASET.NAME", "demo", *words]).DATASET.ROOT == root
