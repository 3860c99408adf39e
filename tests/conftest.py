"""Shared by all tests: the golden vectors, and a small OpenAI-format CLIP of the same recipe."""
import importlib
import json
import os
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

GOLDEN, GOLDEN_METHODS, GOLDEN_FIELD = (
    Path(os.environ.get(f"CCLNET_{name.upper()}", Path(__file__).parent / name))
    for name in ("golden", "golden_methods", "golden_field"))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.fixture
def one_thread():
    """The golden numbers were made with one thread; more change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Golden:
    """Files of numbers that the released code produced, and the recipe of their inputs."""

    def __init__(self, folder):
        self.folder = folder
        self.meta = json.loads((folder / "meta.json").read_text())
        self.seed = self.meta["seed"]

    recipe = cached_property(lambda self: self.module("recipe"))
    recipe_vit = cached_property(lambda self: self.module("recipe_vit"))
    recipe_field = cached_property(lambda self: self.module("recipe_field"))

    def module(self, name):
        with pytest.MonkeyPatch.context() as patch:
            for folder in (GOLDEN, self.folder):        # all have the recipe of the first
                patch.syspath_prepend(folder)
            return importlib.import_module(name)

    def load(self, name):
        return np.load(self.folder / f"{name}.npz", allow_pickle=False)

    def json(self, name):
        return json.loads((self.folder / f"{name}.json").read_text())

    def draw(self, name, shape, scale=1.0):
        return torch.from_numpy(self.recipe.draw(self.seed, name, tuple(shape), scale))


@pytest.fixture(scope="session")
def golden():
    return Golden(GOLDEN)


@pytest.fixture(scope="session")
def golden_methods():
    """Numbers of other released codes, and of CCLNet's RegDB release."""
    return Golden(GOLDEN_METHODS)


@pytest.fixture(scope="session")
def golden_field():
    """Numbers of the encoders and methods that the field trains."""
    return Golden(GOLDEN_FIELD)


@pytest.fixture(scope="session")
def golden_clip(golden, tmp_path_factory):
    """The CLIP of the golden vectors, loaded: its text side."""
    from model.clip import load_clip
    path = tmp_path_factory.mktemp("clip") / "golden_clip.pt"
    torch.save(golden.recipe.clip_state_dict(golden.seed), path)
    return load_clip(str(path))


@pytest.fixture(scope="session")
def tiny_clip_file(golden, tmp_path_factory):
    """A path to a very small random CLIP (width 16), fp16 as OpenAI ships weights."""
    state = golden.recipe.clip_state_dict(3, width=16, embed=32, text_width=64, text_layers=1)
    path = tmp_path_factory.mktemp("clip") / "tiny_clip.pt"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_vit_file(golden_methods, tmp_path_factory):
    """A path to a very small random CLIP with a vision transformer (two heads, patches of 16), fp16."""
    state = golden_methods.recipe_vit.clip_vit_state_dict(3, layers=2, grid=3, text_width=64, text_layers=1)
    path = tmp_path_factory.mktemp("clip") / "tiny_vit.pt"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def ics_file(golden_field, tmp_path_factory):
    """A path to a very small transformer of TransReID-SSL's names."""
    path = tmp_path_factory.mktemp("weights") / "ics.pth"
    torch.save(golden_field.recipe_field.ics_checkpoint(golden_field.seed, 64, 2), path)
    return str(path)


@pytest.fixture
def clip(tiny_clip_file):
    from model.clip import load_clip
    return load_clip(tiny_clip_file)


@pytest.fixture(params=["tiny_clip_file", "tiny_vit_file"], ids=["resnet", "vit"])
def either_clip_file(request):
    """A path to a tiny CLIP of each kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def either_clip(either_clip_file):
    """A tiny CLIP of each kind."""
    from model.clip import load_clip
    return load_clip(either_clip_file)


@pytest.fixture
def model(tiny_clip_file):
    """A new network of the tiny CLIP, for images of tiny.py's size."""
    from tests.tiny import tiny_model
    return tiny_model(tiny_clip_file)


@pytest.fixture
def stubs(monkeypatch):
    """Puts something that costs nothing in place of an epoch's embedding, clusters (the persons) and steps.

    `stubs.steps` holds the arguments of every step; `stubs.step` and `stubs.labels` may be replaced.
    """
    import processor.train
    from tests.tiny import IMAGES, LABELS
    from utils.modality import Modality

    found = SimpleNamespace(steps=[], labels=lambda modality: LABELS[modality], step=lambda *_: {
        "loss_rgb": torch.tensor(1.0), "loss_ir": torch.tensor(1.0)})

    def train_step(*arguments):
        found.steps.append(arguments)
        return found.step(*arguments)

    monkeypatch.setattr(processor.train, "train_step", train_step)
    monkeypatch.setattr(processor.train, "embed_all", lambda *_: {"feature": {m: torch.eye(IMAGES) for m in Modality}})
    monkeypatch.setattr(processor.train, "make_pseudo_labels", lambda features, modality, *_: found.labels(modality))
    return found


@pytest.fixture(scope="session")
def banks():
    """Random images of both modalities, of tiny.py."""
    from tests.tiny import tiny_banks
    return tiny_banks()


@pytest.fixture(scope="session")
def finished(tiny_clip_file, tmp_path_factory):
    """A folder with data, and a run of both scripts on it, of an epoch each; tests may lie beside its checkpoints."""
    import scripts
    import trees

    base = tmp_path_factory.mktemp("finished")
    trees.people_tree(base / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
    words = scripts.settings(DATASET__ROOT=base / "data", OUTPUT_DIR=base / "run", MODEL__CLIP_WEIGHTS=tiny_clip_file)
    with pytest.MonkeyPatch.context() as patch:
        scripts.without_report(patch)
        assert [scripts.call(scripts.load(name), words) for name in ("train_prepare", "train_clip")] == [0, 0]
    return base
