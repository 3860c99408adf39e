"""TransReID-SSL's transformer with deep and shallow features: equal to the numbers of SDCL's released code."""
import argparse
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.checkpoint import settings_of
from model.cclnet import CCLNet
from model.released import model_from_checkpoint, our_name
from model.towers.registry import load_tower
from processor.features import embed
from tests.workers import DoubleCCLNet
from utils.errors import UserError
from utils.modality import Modality

RGB, IR = Modality
CASES = ("vit_ics_96x48", "vit_ics_288x144")


@pytest.fixture(autouse=True)
def in_double(monkeypatch):
    """The numbers were made in float64; the code computes features in float32 on purpose."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def close(found, expected):
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def images(field, name):
    g = field.load(name)
    size = int(g["height"]), int(g["width"])
    return g, {m: field.draw(f"{name}.{m.value}", (int(g[m.value]), 3, *size)).double() for m in Modality}


@pytest.fixture(scope="module")
def published(golden_field, tmp_path_factory):
    """The file of a pre-training run, as DINO's code writes it."""
    path = tmp_path_factory.mktemp("weights") / "ics.pth"
    state = golden_field.recipe_field.ics_checkpoint(golden_field.seed, 128, 3)
    torch.save({"teacher": {**{f"module.backbone.{name}": value for name, value in state.items()},
                            "module.head.mlp.0.weight": torch.ones(2)}, "epoch": 3, "student": {},
                "args": argparse.Namespace(arch="vit")}, path)
    return str(path)


@pytest.mark.parametrize("name", CASES)
def test_published_weights(golden_field, published, name):
    g, shown = images(golden_field, name)
    model = CCLNet(load_tower(published, height=int(g["height"]), width=int(g["width"]))).double().eval()
    close(model.tower.pos_embed, g["pos_embed"])
    for m in Modality:
        found = model.encode(shown[m], m, ("depths",))["depths"]
        close(found[:, 0], g[f"loaded_deep_{m.value}"])
        close(found[:, 1], g[f"loaded_shallow_{m.value}"])


@pytest.fixture
def different(golden_field):
    """A case's name -> its numbers, images, and a model all of whose weights differ, read as SDCL's checkpoints are."""
    def build(name):
        g, shown = images(golden_field, name)
        height, width, d, depth = (int(g[key]) for key in ("height", "width", "model_width", "model_depth"))
        state = golden_field.recipe_field.ics_state_dict(golden_field.seed, d, depth, height * width // 256)
        state |= {f"base.blocks.{depth - 1}.norm1.bias": torch.ones(d), "base.norm.bias": torch.ones(d)}    # not used
        released = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "best_mAP": 0.5}
        model = model_from_checkpoint(released, "model_best.pth.tar")
        assert settings_of(released) == {"INPUT.HEIGHT": height, "INPUT.WIDTH": width, "TEST.MIRRORED": True}
        double = DoubleCCLNet(model.tower)
        double.neck = model.neck
        return g, shown, double.double()
    return build


@pytest.mark.parametrize("name", CASES)
def test_features(different, name):
    """Deep and shallow ones, what the last blocks see, and what is clustered and tested: means over mirror images."""
    g, shown, model = different(name)
    seen = []
    for last in (model.tower.deep, model.tower.shallow):
        last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for m in Modality:
        found = model.eval().encode(shown[m], m, ("depths", "feature"))
        close(found["depths"][:, 0], g[f"deep_{m.value}"])
        close(found["depths"][:, 1], g[f"shallow_{m.value}"])
        close(found["feature"], torch.nn.functional.normalize(found["depths"].flatten(1), dim=1).detach().numpy())
    close(seen[2][:, 0], g["ir_class_token_before_last"])
    close(seen[3][0, 1:], g["ir_patch_tokens"])
    bank = SimpleNamespace(device=torch.device("cpu"), normalisation="half",
                           batch=lambda indices: 127.5 * shown[RGB][indices] + 127.5)
    found = embed(model, bank, RGB, ("feature", "depths"), range(len(shown[RGB])), batch_size=2, precision="fp32",
                  mirrored=True)
    close(found["feature"], g["test_rgb"])
    assert found["depths"].shape == (len(shown[RGB]), 2, 128)


def test_training(golden_field, different):
    g, shown, model = different("vit_ics_96x48")
    out = torch.cat(list(model.train()(*shown.values())["feature"].values()))
    deep, shallow = out.chunk(2, dim=1)
    close(deep, g["train_deep"])
    close(shallow, g["train_shallow"])
    loss = (out * golden_field.draw("vit_ics_96x48.direction", (7, 256)).double()).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(g["loss"]), rel=1e-5)
    ours = lambda theirs: our_name(theirs).replace("neck_shallow", "neck")      # noqa: E731
    state, gradients = model.state_dict(), {name: p.grad for name, p in model.named_parameters()}
    for key in g.files:
        what, _, theirs = key.partition(":")
        rows = {"bottleneck": slice(128), "bottlenecks": slice(128, 256)}.get(theirs.split(".")[0], slice(None))
        if what in ("running_mean", "running_var"):
            close(state[ours(f"{theirs}.{what}")][rows], g[key])
        elif what == "gradient_norm":
            gradient = gradients[ours(theirs)][rows]
            assert float(gradient.norm()) == pytest.approx(float(g[key]), rel=1e-5)
            close(gradient if gradient.numel() <= 2500 else gradient[:8, :8], g[f"gradient:{theirs}"])
    assert {name for name, gradient in gradients.items() if gradient is None} == {"neck.bias"}


@pytest.mark.parametrize("words, message", [
    ({"weights": "openai"}, "weights openai are missing; MODEL.TOWER transreid starts from a file"),
    ({"height": 90}, "INPUT.HEIGHT is 90; expected a multiple of 16"), ({"stride": 12}, "MODEL.STRIDE is 12, but")])
def test_other_words_are_refused(published, words, message):
    with pytest.raises(UserError, match=message):
        load_tower(**{"weights": published, "tower": "transreid", "height": 96, "width": 48, **words})
