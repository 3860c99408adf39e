"""A vision transformer in CLIP's place: runs of the scripts, checkpoints, sentences, optimiser, normalisation."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
import trees
from open_clip.pretrained import get_pretrained_url

from configs.defaults import CHOICES, load_config
from data import augment
from model import clip as clip_module
from model.cclnet import CCLNet
from model.clip import load_clip
from model.released import checkpoint_normalisation, model_from_checkpoint
from processor.guidance import describe_scale
from processor.optim import freeze, image_optimizer
from processor.train import TrainState, train
from tests.tiny import HEIGHT, WIDTH, TinyRun, tiny_banks, tiny_settings, tiny_tester
from tools import export_released
from tools.dev import train_demo_clip
from utils.errors import UserError
from utils.modality import Modality

BOTH = ("feature", "projection")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip(tiny_vit_file):
    return load_clip(tiny_vit_file)


@pytest.fixture
def model(clip):
    return CCLNet(clip.visual, HEIGHT, WIDTH, 8)


def images_of(model, count=4):
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(count, 3, model.tower.height, model.tower.width, generator=generator) for m in Modality}


def content_of(model, **changes):
    return {"state_dict": model.state_dict(), "model": {**model.describe(), **changes}}


# ---- Runs

@pytest.fixture(scope="module")
def finished(tiny_vit_file, tmp_path_factory):
    """The folder of a run of both scripts, in bf16, with overlapping patches and a frozen patch convolution."""
    base = tmp_path_factory.mktemp("vit")
    trees.people_tree(base / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
    words = scripts.settings(DATASET__ROOT=base / "data", OUTPUT_DIR=base / "run", MODEL__CLIP_WEIGHTS=tiny_vit_file,
                             MODEL__STRIDE=8, INPUT__NORMALISATION="half", PRECISION="bf16", OPTIM__LR=1e-4,
                             OPTIM__FACTORS=[["tower.stems.", 0]])
    with pytest.MonkeyPatch.context() as patch:
        scripts.without_report(patch)
        for name in ("train_prepare", "train_clip"):
            assert scripts.call(scripts.load(name), words) == 0
    return base / "run"


def test_a_run_of_both_scripts(finished, tiny_vit_file):
    content = torch.load(finished / "model_last.pth", weights_only=True)
    assert content["model"] == {"kind": "vit", "height": 32, "width": 16, "stride": 8, "heads": 2,
                                "activation": "quick_gelu"}
    assert checkpoint_normalisation(content) == "half"
    state, start = content["state_dict"], CCLNet(load_clip(tiny_vit_file).visual, 32, 16, 8).state_dict()
    assert set(state) == set(start) and state["tower.positional_embedding"].shape == (1 + 3, 128)
    for m in Modality:
        name = f"tower.stems.{m.value}.weight"
        assert torch.equal(state[name], start[name])
    assert not torch.equal(state["tower.transformer.resblocks.0.mlp.c_fc.weight"],
                           start["tower.transformer.resblocks.0.mlp.c_fc.weight"])
    assert not torch.equal(state["tower.positional_embedding"], start["tower.positional_embedding"])
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_i2t_rgb", "loss_i2t_ir"} <= set(rows[-1])
    log = (finished / "log.txt").read_text()
    assert log.count("mean norms: image projections") == 1


def test_its_checkpoint_is_tested_with_the_settings_it_holds(finished, capsys):
    assert scripts.call(scripts.load("test"), ["--resume_path", finished / "model_last.pth"]) == 0
    written = next(finished.glob("tests/model_last-*/metrics.json"))
    assert json.loads(written.read_text())["rank1"] == pytest.approx(json.loads(
        (finished / "metrics.jsonl").read_text().splitlines()[-1])["test"]["rank1"])
    capsys.readouterr()
    assert scripts.call(scripts.load("test"), ["--resume_path", finished / "model_last.pth", "MODEL.STRIDE", "16"]) == 2
    assert "was trained with MODEL.STRIDE 8, now it is 16" in capsys.readouterr().err


def test_the_released_format_knows_no_vision_transformer(finished, tmp_path):
    with pytest.raises(UserError, match="holds a vision transformer, and the released format knows ResNets alone"):
        export_released.main([str(finished / "model_last.pth"), str(tmp_path / "out.pth")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop_after", [2, 9])
def test_a_stopped_run_resumes_to_the_bit(clip, tmp_path, stop_after):
    banks = tiny_banks()
    settings = tiny_settings(epochs=2, OPTIM__LR=1e-4, OPTIM__FACTORS=[["tower.transformer.", 0.5]])

    def run(folder, **arguments):
        run, model = TinyRun(tmp_path / folder, **arguments), CCLNet(clip.visual, HEIGHT, WIDTH, 8)
        train("prepare", model, banks, settings, run, tiny_tester(banks))
        return model.state_dict()

    whole = run("whole")
    with pytest.raises(KeyError, match="enough"):
        run("stopped", stop_after=stop_after)
    resumed = run("stopped", content=torch.load(tmp_path / "stopped" / "tiny_state.pth", weights_only=True))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


# ---- Checkpoints

@pytest.mark.parametrize("stride", [16, 8, 5])
def test_a_checkpoint_gives_the_model_back(clip, stride):
    model = CCLNet(clip.visual, 64, 24, stride)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) * 0.01)
    again = model_from_checkpoint(content_of(model), "model.pth")
    assert again.describe() == model.describe()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for m, images in images_of(model).items():
            for head, rows in model.eval().encode(images, m, BOTH).items():
                assert torch.equal(rows, again.encode(images, m, BOTH)[head])


def test_what_a_checkpoint_does_not_say_is_inferred(clip):
    model = CCLNet(clip.visual, HEIGHT, WIDTH)
    content = {"state_dict": model.state_dict(), "config": {"INPUT": {"HEIGHT": HEIGHT, "WIDTH": WIDTH}}}
    assert model_from_checkpoint(content, "model.pth").describe() == model.describe()
    assert checkpoint_normalisation(content) == "imagenet"


def test_the_description_counts(clip):
    """Four heads instead of two give another model from the same weights."""
    model = CCLNet(clip.visual, HEIGHT, WIDTH).eval()
    other = model_from_checkpoint(content_of(model, heads=4), "model.pth")
    assert other.describe()["heads"] == 4
    images = images_of(model)[Modality.IR]
    with torch.no_grad():
        assert not torch.allclose(model.encode_image(images, "ir").projection,
                                  other.encode_image(images, "ir").projection, atol=1e-3)


@pytest.mark.parametrize("changes, sentence", [
    ({"heads": 11}, "with heads 11, but its weights need a divisor of 128"),
    ({"heads": "two"}, "with heads two, but"), ({"heads": 0}, "with heads 0, but"),
    ({"kind": "resnet"}, "with kind resnet, but its weights need vit"),
    ({"stride": 17}, "with stride 17, but its weights need 1 to 16"),
    ({"stride": 4}, "was trained on images of 3 map cells; INPUT.HEIGHT 32 and INPUT.WIDTH 16 give 5"),
    ({"activation": "gelu"}, "with activation gelu, but its weights need quick_gelu"),
    ({"height": 64}, "was trained on images of 3 map cells"),
])
def test_a_description_of_another_model(model, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        model_from_checkpoint(content_of(model, **changes), "model.pth")


@pytest.mark.parametrize("name, sentence", [("tower.proj", "does not fit together"),
                                            ("tower.stems.rgb.weight", "holds no image side"),
                                            ("tower.transformer.resblocks.1.ln_2.weight", "does not fit together")])
def test_a_checkpoint_that_lacks_a_weight(model, name, sentence):
    content = content_of(model)
    del content["state_dict"][name]
    with pytest.raises(UserError, match=sentence):
        model_from_checkpoint(content, "model.pth")


# ---- Weights

def test_names(monkeypatch):
    """open_clip has the file of every name, and an unknown name lists the names."""
    assert all(get_pretrained_url(name, "openai") for name in CHOICES["MODEL.NAME"])
    with pytest.raises(UserError, match="MODEL.NAME is RN18; choose RN50 or RN101 or"):
        load_clip("openai", "RN18")
    asked = []
    monkeypatch.setattr(clip_module, "download_pretrained_from_url", lambda url, **_: asked.append(url) or "no/file")
    with pytest.raises(UserError, match="no/file are missing"):
        load_clip("openai", "ViT-B-16")
    assert asked == [get_pretrained_url("ViT-B-16", "openai")] and asked[0].endswith("/ViT-B-16.pt")


def test_a_named_kind_must_be_the_files(tiny_vit_file, tiny_clip_file):
    assert load_clip(tiny_vit_file, "ViT-L-14").visual.class_embedding.shape == (128,)
    load_clip(tiny_clip_file, "RN101")
    for file, name in ((tiny_clip_file, "ViT-B-16"), (tiny_vit_file, "RN101")):
        with pytest.raises(UserError, match=f"MODEL.NAME is {name}, a .* hold a "):
            load_clip(file, name)


# ---- Optimiser

def test_groups_without_factors_are_the_released_ones(model):
    optimizer = image_optimizer(model.named_parameters(), 0.1, 0.0, 2.0)
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for group, wanted in zip(optimizer.param_groups, (False, True)):
        assert all(a is b for a, b in zip(group["params"], [p for n, p in named.items() if ("bias" in n) == wanted],
                                          strict=True))


def test_the_first_factor_that_fits_counts(model):
    factors = (("tower.transformer.resblocks.1", 3.0), ("tower.transformer.", 0.1), ("tower.stems.", 0))
    freeze(model.named_parameters(), factors)
    optimizer = image_optimizer(model.named_parameters(), 0.1, 0.0, 2.0, factors)
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates.get(id(p)) for name, p in model.named_parameters()}
    assert named["tower.transformer.resblocks.1.ln_1.weight"] == pytest.approx(0.3)
    assert named["tower.transformer.resblocks.0.ln_1.weight"] == pytest.approx(0.01)
    assert named["tower.transformer.resblocks.0.attn.in_proj_bias"] == pytest.approx(0.02)
    assert named["tower.ln_pre.weight"] == pytest.approx(0.1) and named["tower.ln_pre.bias"] == pytest.approx(0.2)
    assert named["tower.stems.ir.weight"] is None and not model.tower.stems["ir"].weight.requires_grad


def test_a_factor_for_no_parameter_is_refused(model):
    with pytest.raises(UserError, match="OPTIM.FACTORS names stem., with which no weight's name begins; "
                       "expected the start of a name such as neck.*, tower.ln_post, tower.ln_pre, "):
        freeze(model.named_parameters(), (("tower.", 1.0), ("stem.", 0.5)))


def test_a_state_keeps_the_factors(model):
    settings = tiny_settings(OPTIM__FACTORS=[["neck.", 0.5]])
    groups = TrainState(model, settings).optimizer.param_groups
    assert [len(group["params"]) for group in groups][2:] == [1, 0]
    assert groups[2]["base_lr"] == settings.lr * 0.5


# ---- Normalisation

def test_normalisations():
    """The names are those of the setting; erased pixels are 0 in all of them."""
    assert tuple(augment.NORMALISATIONS) == CHOICES["INPUT.NORMALISATION"]
    images = torch.full((1, 3, 8, 4), 51, dtype=torch.uint8)
    plan = augment.Plan(np.array([False]), np.array([[0, 0]]), np.array([False]), np.array([[2, 1, 3, 2]]),
                        np.array([-1]))
    for name, (mean, std) in augment.NORMALISATIONS.items():
        expected = (0.2 - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(augment.normalise(images, name)[0, :, 0, 0], expected)
        applied = augment.apply(images, plan, name)[0]
        torch.testing.assert_close(applied[:, 0, 0], expected)
        assert (applied[:, 2:5, 1:3] == 0).all() and (applied != 0).sum() == 3 * (32 - 6)
    torch.testing.assert_close(augment.normalise(images, "half"), torch.full((1, 3, 8, 4), -0.6))


# ---- The scale of the text losses

@pytest.mark.parametrize("image_norm, text_norm, warning", [
    (3.0, 3.0, None), (2.0, 2.4, "can hardly leave their start"), (7.2, 7.0, "begin far sharper than RN50's")])
def test_the_scale_of_the_text_losses(image_norm, text_norm, warning):
    lines = describe_scale(image_norm, text_norm, 200, 100.0)
    assert f"projections {image_norm:.2f}, text features {text_norm:.2f}" in lines[0]
    assert len(lines) == (2 if warning else 1)
    assert not warning or (lines[1].startswith("warning: ") and warning in lines[1])


def test_one_cluster_asks_for_no_scale():
    assert len(describe_scale(0.1, 0.1, 1, 100.0)) == 1


@pytest.mark.parametrize("clusters, least", [(2, 0.0), (3, math.log(2)), (101, math.log(100))])
def test_the_scale_has_bounds(clusters, least):
    """Too small below ln(K - 1), too large above half of CLIP's own scale, right at both."""
    def warnings(product):
        return len(describe_scale(product, 1.0, clusters, 64.0)) - 1

    assert [warnings(max(0.0, least - 1e-9)), warnings(least), warnings(32.0), warnings(32.0 + 1e-9)] == [
        clusters > 2, 0, 0, 1]


# ---- The demo's small CLIP

def test_the_position_grid_of_the_demos_clip_survives_the_square_format(tmp_path):
    small = train_demo_clip.build_model(8, 0, "vit").eval()
    torch.save(train_demo_clip.openai_state(small, torch.arange(8), 20, 0), tmp_path / "small.pt")
    tower = CCLNet(load_clip(str(tmp_path / "small.pt")).visual, *train_demo_clip.IMAGE_SIZE, 16).tower
    assert torch.equal(tower.positional_embedding, small.visual.positional_embedding.half().float())
    images = torch.randn(2, 3, *train_demo_clip.IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = tower.project(tower.trunk(tower.stem(images, "ir"))[1])
        torch.testing.assert_close(found, small.visual(images), rtol=0, atol=2e-2)


def test_the_shipped_clip():
    """It is at most 8 MB, and the settings of its demo fit it."""
    config = load_config("configs/demo_vit.yml")
    assert Path(config.MODEL.CLIP_WEIGHTS).stat().st_size <= 8e6
    model = CCLNet(load_clip(config.MODEL.CLIP_WEIGHTS, config.MODEL.NAME).visual, config.INPUT.HEIGHT,
                   config.INPUT.WIDTH, config.MODEL.STRIDE)
    assert model.describe()["kind"] == "vit" and model.feature_dim == 128
