"""The contract of a tower without texts, by a narrow AGW: from ImageNet's names to a published model and back."""
import json

import pytest
import scripts
import torch
import trees
from torchvision.models import ResNet50_Weights

from configs.defaults import load_config
from data.augment import Augmentation
from model.cclnet import CCLNet
from model.published import load_checkpoint
from model.released import model_from_checkpoint, released_name
from model.towers.agw import AGW, AGWPlain
from model.towers.clip_resnet import ClipResNet
from model.towers.registry import TOWERS, load_tower
from processor.setup import train_settings
from tests.tiny import outputs
from tools import export_released
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture(scope="module")
def weights():
    """A ResNet of 8 channels as torchvision would save it, with its last layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = AGWPlain(8, (1, 2, 3, 1), 32, 16).state_dict()
    return {"fc.weight": torch.ones(1000, 256), **{
        name.removeprefix("stems.rgb.").removeprefix("layers."): value for name, value in state.items()
        if not name.startswith("stems.ir.")}}


@pytest.fixture
def file(weights, tmp_path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


@pytest.mark.parametrize("kind, places", [("agw", ("layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer3.2")),
                                          ("agw_plain", ())])
def test_it_starts_from_imagenet_and_what_is_new_is_seeded(file, weights, monkeypatch, kind, places):
    """Both stems are ImageNet's; non-local blocks change nothing yet; one seed gives one network."""
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V1, "get_state_dict", lambda **_: weights, raising=False)
    models = [CCLNet(load_tower(start, kind, height=32, width=16, seed=seed))
              for start, seed in ((file, 1), ("imagenet", 1), (file, 2))]
    states = [model.state_dict() for model in models]
    for m in Modality:
        assert torch.equal(states[0][f"tower.stems.{m.value}.conv1.weight"], weights["conv1.weight"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    new = {name for name, value in states[0].items() if not torch.equal(value, states[2][name])}
    parts = ("theta.weight", "theta.bias", "phi.weight", "phi.bias", "g.0.weight", "g.0.bias", "W.0.weight", "W.0.bias")
    assert new == {"neck.weight", *(f"tower.layers.{place.replace('.', '.non_local_')}.{part}"
                                    for place in places for part in parts)}
    assert abs(states[0]["neck.weight"].std() - 0.01) < 0.002
    plain = CCLNet(load_tower(file, "agw_plain", height=32, width=16))
    plain.neck.weight.data.copy_(states[0]["neck.weight"])
    torch.testing.assert_close(outputs(models[0]), outputs(plain))


def test_weights_of_another_tower_are_refused(file, weights, tiny_clip_file, tiny_vit_file, tmp_path, monkeypatch):
    def no_network(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V1, "get_state_dict", no_network, raising=False)
    for name, content in (("unknown", {"weight": torch.ones(1)}),
                          ("nan", {**weights, "bn1.bias": torch.full((8,), torch.nan)}),
                          ("wide", {**weights, "conv1.weight": torch.ones(64, 3, 7, 7)})):
        torch.save(content, tmp_path / f"{name}.pth")
    for words, sentence in (
            ((str(tmp_path / "nan.pth"), "agw"), "nan.pth does not fit the model: bn1.bias holds NaN or Inf"),
            ((str(tmp_path / "wide.pth"), "agw"), r"bn1.weight has shape \(8,\); expected \(64,\)"),
            ((file, "clip_resnet"), "lack visual.conv1.weight, .* expected a whole CLIP"),
            ((tiny_vit_file, "clip_resnet"), "MODEL.TOWER is clip_resnet, but the weights .* are of CLIP's other"),
            ((tiny_clip_file, "agw"), "tiny_clip.pt does not fit the model: conv1.weight is missing.*another MODEL"),
            (("openai", "agw"), "MODEL.TOWER is agw, but MODEL.CLIP_WEIGHTS is openai, a CLIP; set it to \"imagenet\""),
            (("imagenet",), "ResNet-50 could not be downloaded .no route to host.; set MODEL.CLIP_WEIGHTS"),
            ((str(tmp_path / "unknown.pth"),), "belong to no tower that is known .clip_resnet, clip_vit, agw, agw_")):
        with pytest.raises(UserError, match=sentence):
            load_tower(*words, height=32, width=16)
    monkeypatch.setitem(TOWERS, "averaging", type("Averaging", (ClipResNet,), {}))      # its checkpoints: its parent's
    with pytest.raises(ValueError, match="TOWERS has Averaging as averaging, but its `kind` is 'clip_resnet'"):
        load_tower(tiny_clip_file, "averaging", height=32, width=16)


def test_train_test_publish_and_read_it(file, tmp_path, monkeypatch, capsys):
    scripts.without_report(monkeypatch)
    root = trees.people_tree(tmp_path / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
    words = scripts.settings(DATASET__ROOT=root, OUTPUT_DIR=tmp_path / "run", MODEL__CLIP_WEIGHTS=file,
                             SAMPLER__ITERATIONS=2)
    assert scripts.call(scripts.load("train_prepare"), words) == 0
    path = tmp_path / "run/prepare_last.pth"
    model = model_from_checkpoint(load_checkpoint(path), path)
    assert type(model.tower) is AGW and model.describe() == {"kind": "agw", "height": 32, "width": 16}
    assert scripts.call(scripts.load("test"), ["--resume_path", path]) == 0
    assert scripts.call(scripts.load("test"), ["--resume_path", path, "MODEL.TOWER", "clip_vit"]) == 2
    assert "was trained with MODEL.TOWER agw, now it is clip_vit" in capsys.readouterr().err
    assert scripts.call(scripts.load("train_clip"), words) == 2
    assert "MODEL.TOWER agw has no texts, which train_clip.py learns" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("clip_*"))
    export_released.main([str(path), str(tmp_path / "out"), "--safetensors"])
    published = tmp_path / "out/model.safetensors"
    assert torch.equal(outputs(model_from_checkpoint(load_checkpoint(published), published)), outputs(model))
    with pytest.raises(UserError, match="MODEL.TOWER agw, and the released format knows clip_resnet alone"):
        export_released.main([str(path), str(tmp_path / "out.pth"), "--clip_weights", file])


# Visible and infrared images of a batch, parts of its batch norm, iterations, largest distance of neighbours.
@pytest.mark.parametrize("name, numbers", [
    ("sysu_pgm_agw", (128, 256, 4, 200, 0.6)), ("regdb_pgm_agw", (128, 256, 4, 100, 0.3)),
    ("sysu_rpnr_agw", (128, 128, 2, 200, 0.6)), ("regdb_rpnr_agw", (64, 128, 2, 100, 0.3))])
def test_released_recipes_hold_their_numbers_and_run(file, tmp_path, monkeypatch, name, numbers):
    """All by their numbers; one at a small size, from clusters to a test of means over mirror images."""
    config_file = scripts.REPOSITORY / "configs" / f"{name}.yml"
    config = load_config(config_file)
    settings, given = train_settings(config, "prepare"), config.SAMPLER
    images = [clusters * given.INSTANCES for clusters in (given.RGB_CLUSTERS or given.CLUSTERS, given.CLUSTERS)]
    assert (*images, config.BATCH_NORM.SPLITS, settings.iterations, settings.cluster.eps) == numbers
    assert settings.method(**settings.of_method).mirrored and settings.across_cameras and config.MODEL.TOWER == "agw"
    assert settings.augmentation == {
        Modality.RGB: Augmentation(flip=0.5, pad=10, erase=0.5, channel=1, jitter=0.5 if "pgm" in name else 0),
        Modality.IR: Augmentation(flip=0.5, pad=10, erase=0.5, channel=0.75, mean=0.125)}
    if name != "regdb_rpnr_agw":
        return
    scripts.without_report(monkeypatch)
    root = trees.regdb_tree(tmp_path / "data", persons=4, images=3)
    words = scripts.settings(DATASET__ROOT=root, OUTPUT_DIR=tmp_path / "run", MODEL__CLIP_WEIGHTS=file,
                             SAMPLER__CLUSTERS=4, SAMPLER__RGB_CLUSTERS=2, SAMPLER__ITERATIONS=2,
                             CLUSTER__MIN_SAMPLES=1, PREPARE__EPOCHS=2, PREPARE__ALLOW_COLLAPSE=True)
    assert scripts.call(scripts.load("train_prepare"), ["--config_file", config_file, *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert ["loss_cross" in row for row in rows] == [False, True]
    path = tmp_path / "run/prepare_last.pth"
    assert scripts.call(scripts.load("test"), ["--resume_path", path, "TEST.TRIALS", 2]) == 0
    record = json.loads(next(tmp_path.glob("run/tests/prepare_last-*/metrics.json")).read_text())
    assert record["identity"]["TEST.MIRRORED"] and record["mAP"] == load_checkpoint(path)["metrics"]["mAP"]


@pytest.mark.parametrize("kind", ["agw", "agw_plain"])
def test_checkpoints_without_a_kind_and_released_ones_are_recognised(file, kind):
    """By the names of the weights; a released one is under other names and may be of any size."""
    model = CCLNet(load_tower(file, kind, height=32, width=16))
    released = {f"module.{released_name(name)}": value for name, value in model.state_dict().items()}
    for content, size in (({"state_dict": model.state_dict(), "model": {"height": 32, "width": 16}}, ()),
                          ({"state_dict": released, "epoch": 3, "best_mAP": 0.5}, (32, 16)),
                          ({"state_dict": released}, ())):
        found = model_from_checkpoint(content, "x.pth", *size)
        assert found.describe() == {"kind": kind, "height": 32 if size or "model" in content else 288,
                                    "width": 16 if size or "model" in content else 144}
        assert torch.equal(outputs(found, (32, 16)), outputs(model))
