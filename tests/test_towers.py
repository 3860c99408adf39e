"""The contract of a tower, by one that has no texts and no CLIP: from a file to a published model and back."""
import pytest
import scripts
import torch
import trees
from torch import nn

from model.cclnet import CCLNet
from model.published import load_checkpoint
from model.released import model_from_checkpoint
from model.state_dict import check_state_dict, read_state_dict
from model.towers.clip_resnet import ClipResNet
from model.towers.registry import TOWERS, load_tower
from model.towers.tower import Tower
from tools import export_released
from utils.errors import UserError
from utils.modality import Modality
from utils.seeding import torch_rng


class Convolutions(Tower):
    """A convolution per modality and one for both; a last layer, which the weights do not hold."""

    kind, untrained = "convolutions", "two convolutions"

    def __init__(self, sizes, height, width):
        super().__init__(nn.Sequential(nn.Conv2d(3, sizes[0], 4, 4), nn.BatchNorm2d(sizes[0])), height, width)
        self.shared, self.last = nn.Conv2d(sizes[0], sizes[1], 3), nn.Linear(sizes[1], sizes[1])

    @classmethod
    def load(cls, weights, *, height, width, name="", stride=None, seed=1):
        state = read_state_dict(weights)
        tower = cls((len(state["first.weight"]), len(state["shared.weight"])), height, width)
        own = {**{f"first.{k}": v for k, v in tower.stems["rgb"][0].state_dict().items()},
               **{f"shared.{k}": v for k, v in tower.shared.state_dict().items()}}
        check_state_dict(state, own, f"the file {weights}", "Choose another")
        for module, prefix in ((tower.stems["rgb"][0], "first."), (tower.stems["ir"][0], "first."),
                               (tower.shared, "shared.")):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        nn.init.normal_(tower.last.weight, generator=torch_rng(seed, "tower", "last"))
        nn.init.zeros_(tower.last.bias)
        return tower

    @classmethod
    def rebuild(cls, state, told):
        return cls((len(state["stems.rgb.0.weight"]), len(state["shared.weight"])), told["height"], told["width"])

    @classmethod
    def recognises(cls, state):
        return "shared.weight" in state

    @property
    def feature_dim(self):
        return self.last.out_features

    def trunk(self, x):
        return self.last(self.shared(x).mean(dim=(2, 3)).float()), None


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(TOWERS, "convolutions", Convolutions)


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"first.weight": (8, 3, 4, 4), "first.bias": (8,), "shared.weight": (16, 8, 3, 3), "shared.bias": (16,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def file(weights, tmp_path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def images():
    return torch.rand(4, 3, 32, 16, generator=torch.Generator().manual_seed(5))


def features(model):
    with torch.no_grad():
        return torch.cat([model.eval().encode_image(images(), m).feature for m in Modality])


def test_it_is_loaded_from_a_file_and_new_layers_are_seeded(file, weights):
    """The file's own tower is found by its names; one seed gives one tower, whatever torch's own state is."""
    towers = {seed: load_tower(file, height=32, width=16, seed=seed) for seed in (1, 2)}
    torch.rand(3)
    again = load_tower(file, "convolutions", height=32, width=16, seed=1)
    assert type(again) is Convolutions and torch.equal(again.stems["ir"][0].weight, weights["first.weight"])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in towers[1].state_dict().items())
    assert not torch.equal(towers[2].last.weight, again.last.weight)


@pytest.mark.parametrize("change, sentence", [
    (lambda w: w.pop("shared.bias"), "shared.bias is missing; expected a tensor of shape (16,)"),
    (lambda w: w.update(other=torch.ones(1)), "other is unknown"),
    (lambda w: w.update({"first.bias": torch.ones(3)}), "first.bias has shape (3,); expected (8,)"),
    (lambda w: w.update({"first.bias": torch.ones(8, dtype=torch.int64)}), "first.bias holds numbers of type"),
    (lambda w: w.update({"first.bias": torch.full((8,), torch.nan)}), "first.bias holds NaN or Inf"),
], ids=["missing", "unknown", "shape", "dtype", "NaN"])
def test_weights_that_differ_are_refused_by_name(weights, tmp_path, change, sentence):
    changed = dict(weights)
    change(changed)
    torch.save(changed, tmp_path / "bad.pth")
    with pytest.raises(UserError) as caught:
        load_tower(str(tmp_path / "bad.pth"), height=32, width=16)
    assert "bad.pth does not fit the model: " + sentence in str(caught.value)


def test_weights_of_another_tower_are_refused(file, tiny_clip_file, tiny_vit_file, tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "unknown.pth")
    for words, sentence in (
            ((file, "clip_resnet"), "lack visual.conv1.weight, .* expected a whole CLIP"),
            ((tiny_vit_file, "clip_resnet"), "MODEL.TOWER is clip_resnet, but the weights .* hold a vision transf"),
            ((tiny_clip_file, "clip_vit"), "MODEL.TOWER is clip_vit, but the weights .* hold a ResNet"),
            ((file, "clip_vot"), "MODEL.TOWER is clip_vot; did you mean clip_vit?"),
            ((str(tmp_path / "unknown.pth"),), "belong to no tower that is known .clip_resnet, clip_vit, convolutions"),
            (("imagenet",), "weights imagenet are missing")):
        with pytest.raises(UserError, match=sentence):
            load_tower(*words, height=32, width=16)


def test_a_kind_that_is_not_the_registered_name_is_a_mistake(monkeypatch, tiny_clip_file):
    """A subclass without a `kind` of its own would write checkpoints of its parent."""
    monkeypatch.setitem(TOWERS, "averaging", type("Averaging", (ClipResNet,), {}))
    with pytest.raises(ValueError, match="TOWERS has Averaging as averaging, but its `kind` is 'clip_resnet'"):
        load_tower(tiny_clip_file, "averaging", height=32, width=16)


def test_a_tower_without_texts_refuses_projections(file):
    model = CCLNet(load_tower(file, height=32, width=16))
    assert model.encode_image(images(), "rgb").projection is None
    with pytest.raises(UserError, match="MODEL.TOWER convolutions has no texts"):
        model(images(), images(), ("feature", "projection"))
    assert model.parameters_without(("feature",)) == []


def test_train_test_publish_and_read_it(file, tmp_path, monkeypatch, capsys):
    scripts.without_report(monkeypatch)
    root = trees.people_tree(tmp_path / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
    words = scripts.settings(DATASET__ROOT=root, OUTPUT_DIR=tmp_path / "run", MODEL__CLIP_WEIGHTS=file)
    assert scripts.call(scripts.load("train_prepare"), words) == 0
    path = tmp_path / "run/prepare_last.pth"
    model = model_from_checkpoint(load_checkpoint(path), path)
    assert type(model.tower) is Convolutions and model.describe() == {"kind": "convolutions", "height": 32, "width": 16}
    assert scripts.call(scripts.load("test"), ["--resume_path", path]) == 0
    assert scripts.call(scripts.load("test"), ["--resume_path", path, "MODEL.TOWER", "clip_vit"]) == 2
    assert "was trained with MODEL.TOWER convolutions, now it is clip_vit" in capsys.readouterr().err
    assert scripts.call(scripts.load("train_clip"), words) == 2
    assert "MODEL.TOWER convolutions has no texts, which train_clip.py learns" in capsys.readouterr().err
    projection = [*words, "OUTPUT_DIR", str(tmp_path / "no"), "METHOD.LINK_BY", "projection"]
    assert scripts.call(scripts.load("train_prepare"), projection) == 2
    assert "METHOD.LINK_BY is projection, but MODEL.TOWER convolutions has no texts" in capsys.readouterr().err
    assert not (tmp_path / "no").exists() and not list((tmp_path / "run").glob("clip_*"))
    export_released.main([str(path), str(tmp_path / "out"), "--safetensors"])
    published = tmp_path / "out/model.safetensors"
    assert torch.equal(features(model_from_checkpoint(load_checkpoint(published), published)), features(model))
    with pytest.raises(UserError, match="MODEL.TOWER convolutions, and the released format knows clip_resnet alone"):
        export_released.main([str(path), str(tmp_path / "out.pth"), "--clip_weights", file])


def test_a_checkpoint_without_a_kind_is_recognised(file):
    model = CCLNet(load_tower(file, height=32, width=16))
    content = {"state_dict": model.state_dict(), "model": {"height": 32, "width": 16}}
    assert torch.equal(features(model_from_checkpoint(content, "x.pth")), features(model))
