"""A vision transformer in CLIP's place: runs of the scripts, checkpoints, weights, optimiser, normalisation."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip.pretrained
import open_clip.transformer
import pytest
import scripts
import torch
import trees

from configs.defaults import load_config
from configs.settings import SETTINGS
from data import augment
from model.cclnet import CCLNet
from model.clip import find_activation, load_clip
from model.released import checkpoint_normalisation, model_from_checkpoint
from model.towers.registry import load_tower
from processor.guidance import describe_scale
from processor.optim import freeze, image_optimizer
from processor.run.folder import read_rows
from tests.tiny import HEIGHT, WIDTH, outputs
from utils.errors import UserError

CHOICES = {setting.name: setting.allowed for setting in SETTINGS}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def new_model(tiny_vit_file):
    return lambda height=HEIGHT, width=WIDTH, stride=8: CCLNet(
        load_tower(tiny_vit_file, height=height, width=width, stride=stride))


@pytest.fixture
def model(new_model):
    return new_model()


def test_a_run_of_both_scripts_and_its_test(new_model, tiny_vit_file, tmp_path, monkeypatch, capsys):
    """In bf16, with overlapping patches and a frozen patch convolution; the test takes the checkpoint's settings."""
    scripts.without_report(monkeypatch)
    trees.people_tree(tmp_path / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
    run, path = tmp_path / "run", tmp_path / "run/model_last.pth"
    words = scripts.settings(DATASET__ROOT=tmp_path / "data", OUTPUT_DIR=run, MODEL__CLIP_WEIGHTS=tiny_vit_file,
                             MODEL__STRIDE=8, INPUT__NORMALISATION="half", PRECISION="bf16", OPTIM__LR=1e-4,
                             OPTIM__FACTORS=[["tower.stems.", 0]], SAMPLER__ITERATIONS=2)
    assert [scripts.call(scripts.load(name), words) for name in ("train_prepare", "train_clip")] == [0, 0]
    content = torch.load(path, weights_only=True)
    assert content["model"] == {"kind": "clip_vit", "height": 32, "width": 16, "stride": 8, "heads": 2,
                                "activation": "quick_gelu"}
    assert checkpoint_normalisation(content) == "half"
    state, start = content["state_dict"], new_model().state_dict()
    assert state.keys() == start.keys()
    assert {name for name in start if "tower." in name and torch.equal(state[name], start[name])} == {
        "tower.stems.rgb.weight", "tower.stems.ir.weight"}
    row = read_rows(run)[-1]
    assert {"loss_i2t_rgb", "loss_i2t_ir"} <= row.keys()
    assert scripts.call(scripts.load("test"), ["--resume_path", path, "TEST.TRIALS", "2"]) == 0
    record = json.loads(next(run.glob("tests/model_last-*/metrics.json")).read_text())
    assert record["rank1"] == pytest.approx(row["test"]["rank1"])
    assert scripts.call(scripts.load("test"), ["--resume_path", path, "MODEL.STRIDE", "16"]) == 2
    assert "was trained with MODEL.STRIDE 8, now it is 16" in capsys.readouterr().err


def test_what_a_checkpoint_does_and_does_not_say(new_model):
    """Without a description the tower has OpenAI's heads, and the size of the images is asked for; four heads count."""
    model = new_model(64, 24, 5)
    again = model_from_checkpoint({"state_dict": model.state_dict(), "model": model.describe()}, "m")
    assert again.describe() == model.describe() and torch.equal(outputs(again), outputs(model))
    model = new_model(stride=16)
    content = {"state_dict": model.state_dict()}
    assert model_from_checkpoint(content, "model.pth", HEIGHT, WIDTH).describe() == model.describe()
    assert checkpoint_normalisation(content) == "imagenet"
    with pytest.raises(UserError, match="does not say the size of its images; set INPUT.HEIGHT"):
        model_from_checkpoint(content, "model.pth")
    other = model_from_checkpoint({**content, "model": {**model.describe(), "heads": 4}}, "m")
    assert other.describe()["heads"] == 4 and not torch.allclose(outputs(model), outputs(other), atol=1e-3)


@pytest.mark.parametrize("changes, lacks, sentence", [
    ({"heads": "two"}, "", "model.pth does not fit together"),
    ({"kind": "clip_resnet"}, "", "does not fit together .* expected a model of kind clip_resnet"),
    ({"height": 64}, "", r"tower.positional_embedding has shape \(4, 128\); expected \(8, 128\)"),
    ({}, "tower.transformer.resblocks.1.ln_2.weight", "resblocks.1.ln_2.weight is missing"),
])
def test_a_checkpoint_of_another_model(model, changes, lacks, sentence):
    state = {name: value for name, value in model.state_dict().items() if not lacks or not name.startswith(lacks)}
    with pytest.raises(UserError, match=sentence):
        model_from_checkpoint({"state_dict": state, "model": {**model.describe(), **changes}}, "model.pth")


def test_names(monkeypatch):
    """open_clip has the file of every name, an unknown name lists the names, and the name finds the tower."""
    url = open_clip.pretrained.get_pretrained_url
    assert all(url(name, "openai") for name in CHOICES["MODEL.NAME"])
    with pytest.raises(UserError, match="MODEL.NAME is RN18; choose RN50 or RN101 or"):
        load_clip("openai", "RN18")
    asked = []
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_url",
                        lambda url, **_: asked.append(url) or "no")
    with pytest.raises(UserError, match="weights no are missing"):
        load_tower("openai", name="ViT-B-16", height=32, width=16)
    assert asked == [url("ViT-B-16", "openai")] and asked[0].endswith("/ViT-B-16.pt")


@pytest.mark.parametrize("file, found", [
    ("ViT-B-16.pt", "quick_gelu"), ("b16_400m.pt", "quick_gelu"), ("mine.pt", "quick_gelu"),
    ("vit_b_32-quickgelu-laion400m_e31-d867053b.pt", "quick_gelu"), ("our-datacomp-copy.pt", "gelu"),
    ("vit_b_16-laion400m_e32-55e67d44.pt", "gelu"), ("pytorch_model.bin", "quick_gelu"),
    ("models--laion--CLIP-ViT-B-16-laion2B-s34B-b88K/snapshots/1/open_clip_pytorch_model.bin", "gelu"),
    ("DFN2B-CLIP-ViT-B-16/open_clip_pytorch_model.bin", "quick_gelu")])
def test_the_activation_is_that_of_the_name(file, found):
    assert find_activation(file)[0] == found


def test_a_name_that_does_not_tell_its_activation_asks_for_it():
    assert find_activation("open_clip_pytorch_model.bin", "gelu")[0] == "gelu"
    with pytest.raises(UserError, match="are open_clip's, and the name does not .* set MODEL.ACTIVATION gelu"):
        find_activation("open_clip_pytorch_model.bin")


@pytest.mark.parametrize("kind, other, block", [("gelu", "quick_gelu", torch.nn.GELU),
                                                ("quick_gelu", "gelu", open_clip.transformer.QuickGELU)])
def test_both_towers_and_a_checkpoint_have_the_activation(tiny_vit_file, kind, other, block):
    """A checkpoint that does not say it is QuickGELU's."""
    clip = load_clip(tiny_vit_file, activation=kind)
    assert {type(each.mlp.gelu) for tower in (clip.visual, clip) for each in tower.transformer.resblocks} == {block}
    model = CCLNet(load_tower(tiny_vit_file, height=HEIGHT, width=WIDTH, activation=kind))
    content = {"state_dict": model.state_dict(), "model": model.describe()}
    assert content["model"]["activation"] == kind
    assert torch.equal(outputs(model_from_checkpoint(content, "m")), outputs(model))
    with pytest.raises(UserError, match="was trained with MODEL.ACTIVATION"):
        model_from_checkpoint(content, "m", activation=other)
    del content["model"]["activation"]
    assert torch.equal(outputs(model_from_checkpoint(content, "m")), outputs(model)) == (kind == "quick_gelu")


def test_the_first_factor_that_fits_counts(model):
    factors = (("tower.transformer.resblocks.1", 3.0), ("tower.transformer.", 0.1), ("tower.stems.", 0))
    freeze(model.named_parameters(), factors)
    optimizer = image_optimizer(model.named_parameters(), SimpleNamespace(
        lr=0.1, weight_decay=0.0, bias_lr_factor=2.0, factors=factors, name="adam"))
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates.get(id(p)) for name, p in model.named_parameters()}
    for name, rate in (("transformer.resblocks.1.ln_1.weight", 0.3), ("transformer.resblocks.0.ln_1.weight", 0.01),
                       ("transformer.resblocks.0.attn.in_proj_bias", 0.02), ("ln_pre.weight", 0.1),
                       ("ln_pre.bias", 0.2)):
        assert named[f"tower.{name}"] == pytest.approx(rate), name
    assert named["tower.stems.ir.weight"] is None and not model.tower.stems["ir"].weight.requires_grad
    with pytest.raises(UserError, match="OPTIM.FACTORS names stem., with which no weight's name begins; "
                       "expected the start of a name such as neck.*, tower.ln_post, tower.ln_pre, "):
        freeze(model.named_parameters(), (("tower.", 1.0), ("stem.", 0.5)))


def test_erased_pixels_are_0_in_all_normalisations():
    assert tuple(augment.NORMALISATIONS) == CHOICES["INPUT.NORMALISATION"]
    images = torch.full((1, 3, 8, 4), 51, dtype=torch.uint8)
    plan = augment.Plan(np.array([False]), np.array([[0, 0]]), np.array([False]), np.array([[2, 1, 3, 2]]),
                        np.array([-1]), np.array([[1, 1, 1, 0, 0, 1, 2, 3]]))
    for name in augment.NORMALISATIONS:
        expected = augment.normalise(images, name)
        expected[:, :, 2:5, 1:3] = 0
        torch.testing.assert_close(augment.apply(images, plan, name), expected)


@pytest.mark.parametrize("clusters, least", [(1, 0.0), (2, 0.0), (3, math.log(2)), (101, math.log(100))])
def test_the_scale_has_bounds(clusters, least):
    """Too small below ln(K - 1), too large above half of CLIP's scale, right at both; one cluster: no bound below."""
    lines = describe_scale(7.2, 7.0, 200, 100.0)
    assert "images 7.20 x texts 7.00" in lines[0] and "warning: " in lines[1]
    assert "begin far sharper" in lines[1] and "can hardly leave" in describe_scale(2.0, 2.4, 200, 100.0)[1]
    found = [len(describe_scale(product, 1.0, clusters, 64.0)) - 1
             for product in (max(0.0, least - 1e-9), least, 32.0, 32.0 + 1e-9)]
    assert found[:3] == [clusters > 2, 0, 0] and (clusters == 1 or found[3] == 1)


def test_the_shipped_clip():
    """It is at most 8 MB, and the settings of its demo fit it."""
    config = load_config("configs/demo_vit.yml")
    assert Path(config.MODEL.CLIP_WEIGHTS).stat().st_size <= 8e6
    tower = load_tower(config.MODEL.CLIP_WEIGHTS, name=config.MODEL.NAME, height=config.INPUT.HEIGHT,
                       width=config.INPUT.WIDTH, stride=config.MODEL.STRIDE)
    assert tower.kind == "clip_vit" and tower.feature_dim == 128
