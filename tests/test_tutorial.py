"""docs/tutorial.py and the examples of README and how-to pages run in miniature."""
import re

import numpy as np
import pytest
import scripts
import torch
import trees
from PIL import Image

from data.registry import open_dataset
from tests.tiny import tiny_banks, tiny_model
from tools.lib.feature_file import read_features
from utils.modality import Modality


@pytest.fixture
def checkpoint(tmp_path, tiny_clip_file, monkeypatch):
    """runs/sysu/model_last.pth in the working folder."""
    monkeypatch.chdir(tmp_path)
    model, path = tiny_model(tiny_clip_file), tmp_path / "runs/sysu/model_last.pth"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": model.state_dict(), "model": model.describe()}, path)
    return path


def example(page):
    """The Python code of a page that is no file of one's own."""
    text = (scripts.REPOSITORY / page).read_text(encoding="utf-8")
    code, = re.findall(r"```python\n((?!# \w+\.py\n).*?)```", text, re.DOTALL)
    return compile(code, page, "exec")


def test_the_tutorial(checkpoint, tmp_path, monkeypatch, capsys):
    for m, bank in tiny_banks().items():
        (tmp_path / m.value).mkdir()
        for number, pixels in enumerate(bank.images):
            Image.fromarray(pixels).save(tmp_path / m.value / f"{number:02}.png")
    monkeypatch.setattr("sys.argv", ["tutorial.py", str(checkpoint), "rgb", "ir"])
    path = scripts.REPOSITORY / "docs/tutorial.py"
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), {"__file__": str(path)})
    said = capsys.readouterr().out
    assert re.search(r"^rgb: [1-9]\d* clusters, \d+ outliers of 30 images$", said, re.MULTILINE)
    assert re.search(r"^[1-9]\d* visible clusters are linked", said, re.MULTILINE)
    assert (tmp_path / "tutorial-map.png").stat().st_size > 5000
    assert len(re.findall(r"^  [\d.]+  rgb/\d\d\.png$", said, re.MULTILINE)) == 5


def test_a_checkpoint_in_python(checkpoint, capsys):
    exec(example("docs/checkpoints.md"), {})
    assert re.match(r"torch.Size\(\[2, \d+\]\)", capsys.readouterr().out)
    for name, position in (("visible.jpg", 0), ("infrared.jpg", 9)):       # two persons
        Image.fromarray(tiny_banks()[Modality.RGB].images[position]).save(name)
    exec(example("README.md"), {})
    assert 1e-3 < float(capsys.readouterr().out) < 2


def test_a_table_of_ones_own_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for modality in ("visible", "infrared"):
        for person in ("07", "08", "10"):
            trees.write_image(tmp_path / f"mine/{modality}/{person}/1.png", rng)
    exec(example("docs/data.md"), {})
    data = open_dataset("csv", tmp_path / "mine")
    assert [len(data.train[m]) for m in Modality] == [2, 2] and [len(data.test[m]) for m in Modality] == [1, 1]


def test_a_file_of_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {m.value: {"features": np.eye(2), "persons": np.arange(2), "cameras": np.ones(2, int),
                        "paths": np.array(["a", "b"])} for m in Modality}
    exec(example("docs/evaluate.md"), {"images": images})
    assert set(read_features("features.npz").features) == set(Modality)
