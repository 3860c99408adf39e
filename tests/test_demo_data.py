"""The synthetic data set: the same files everywhere, the layout of SYSU-MM01, grey infrared."""
import numpy as np
from PIL import Image

from configs.defaults import load_config
from data import demo
from data.registry import open_dataset


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_everybody_draws_the_same_people(tmp_path, monkeypatch):
    """In the layout of SYSU-MM01; infrared images are grey, visible ones are not."""
    monkeypatch.setattr(demo, "SPLITS", {"train": 1, "val": 1, "test": 1})      # few people and images
    monkeypatch.setattr(demo, "IMAGES", {cam: 1 for cam in range(1, 7)})
    a, b = ((open_dataset("demo", tmp_path / name), files(tmp_path / name))[1] for name in "ab")
    assert a == b and len(set(a.values())) == len(a)
    names = {f"cam{c}/{i:04d}/0001.jpg" for c in range(1, 7) for i in (1, 2, 3)}
    assert names == {name for name in a if name.endswith(".jpg")}
    for name in names:
        spread = np.ptp(np.asarray(Image.open(tmp_path / "a" / name)).astype(int), axis=2).max()
        assert (spread == 0) == name.startswith(("cam3", "cam6"))


def test_the_demo_is_not_drawn_where_sysu_belongs():
    assert load_config(None, ["DATASET.NAME", "demo"]).DATASET.ROOT == "dataset/demo"
