"""Released checkpoints: read from files of exactly their keys and shapes, written from ours, tested with test.py."""
import json
import zipfile

import numpy as np
import pytest
import scripts
import torch
import trees

from model.cclnet import CCLNet
from model.clip import load_clip
from model.published import load_checkpoint
from model.released import describe_released, model_from_checkpoint, our_name, released_name
from model.towers.registry import load_tower
from tests.tiny import outputs
from tools.export_released import main
from utils.errors import UserError

HEIGHT, WIDTH = 96, 48


@pytest.fixture(scope="module")
def clip_file(golden, tmp_path_factory):
    """A small CLIP of another width and depth than RN50."""
    path = tmp_path_factory.mktemp("clip") / "small.pt"
    torch.save(golden.recipe.clip_state_dict(3, layers=(1, 2, 1, 1), width=16, embed=128, text_width=64, text_layers=1),
               path)
    return str(path)


@pytest.fixture(scope="module")
def model(clip_file):
    """A model whose every weight differs from CLIP's, as after training."""
    model = CCLNet(load_tower(clip_file, height=HEIGHT, width=WIDTH)).eval()
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.1 * torch.rand(value.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def ours(model, clip_file, tmp_path_factory):
    """A checkpoint as train_clip.py writes it."""
    path = tmp_path_factory.mktemp("ours") / "model_last.pth"
    torch.save({"format": "cclnet-1", "stage": "model", "epoch": 7, "state_dict": model.state_dict(),
                "model": model.describe(),
                "prompts": {"rgb": {"context": torch.ones(5, 4, 64)}, "ir": {"context": torch.ones(3, 4, 64)}},
                "metrics": {"rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "rank20": 0.8, "mAP": 0.4, "mINP": 0.3},
                "config": {"MODEL": {"CLIP_WEIGHTS": clip_file}, "INPUT": {"HEIGHT": HEIGHT, "WIDTH": WIDTH}},
                "dataset": "SYSU-MM01", "trial": 1}, path)
    return path


@pytest.fixture(scope="module")
def exported(ours):
    """The same in the released format."""
    out = ours.with_name("released.pth")
    main([str(ours), str(out)])
    return out


def test_names_map_both_ways(model, golden):
    keys = golden.json("released_checkpoint_keys")
    assert all(our_name(released_name(name)) == name for name in model.state_dict())
    assert len({our_name(k) for k in keys} - {None}) == sum(our_name(k) is not None for k in keys)
    for unused in ("base_resnet.base.conv1.weight", "visible_module.visible.layer1.0.conv1.weight",
                   "prompt_learner.cls_ctx_rgb"):
        assert our_name(unused) is None


RELEASED = {     # names and shapes, what lies beside them, mirror images, what is said
    "cclnet": (lambda golden, _: golden.json("released_checkpoint_keys"),
               {"cmc": np.linspace(0.55, 0.9, 20), "mAP": np.float64(0.5038), "mINP": np.float64(0.37)}, False,
               "states Rank-1 0.5500, mAP 0.5038, mINP 0.3700; 362 of its 1176 weights used"),
    "agw": (lambda _, field: agw_names(field.json("agw_keys")), {"best_mAP": np.float64(0.5136)}, True,
            "states best mAP 0.5136; 394 of its 1025 weights used")}


def agw_names(keys):
    """Names and shapes of a checkpoint of PGM or RPNR: three whole ResNet-50s and what stands beside them."""
    copies = {copy + name: shape for copy in keys["copies_and_what_is_read_of_them"]
              for name, shape in keys["backbone"].items()}
    return {f"module.{name}": shape for name, shape in {**copies, **keys["others"]}.items()}


@pytest.mark.parametrize("kind", RELEASED)
def test_exact_released_file_is_tested_without_imagenet_or_clip(tmp_path, golden, golden_field, monkeypatch, capsys,
                                                                 kind):
    names, beside, mirrored, sentence = RELEASED[kind]
    state = {}
    for name, shape in names(golden, golden_field).items():
        value = 1 if name.endswith("num_batches_tracked") else 1.0 if "running_var" in name else 0.01
        state[name] = torch.tensor(value).expand(shape)           # one number in the file, whatever the shape
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": state, "epoch": 57, **beside}, path)
    scripts.without_report(monkeypatch)
    root = trees.people_tree(tmp_path / "data", images=1, ids={"train": (1,), "val": (2,), "test": (3,)})
    words = ["DATASET.ROOT", root, "DATASET.CHECK_COUNTS", "False", "DEVICE", "cpu", "OUTPUT_DIR", tmp_path / "out",
             "MODEL.CLIP_WEIGHTS", "no/file", "TEST.TRIALS", 1]
    assert scripts.call(scripts.load("test"), ["--resume_path", path, *words]) == 0
    assert f"released format, epoch 57, {sentence}" in " ".join(capsys.readouterr().out.split())
    record = json.loads(next(tmp_path.glob("**/metrics.json")).read_text())
    assert record["epoch"] == 57 and record["selection"] == "as released" and 0 < record["rank1"] <= 1
    assert record["identity"]["TEST.MIRRORED"] is mirrored and record["identity"]["INPUT.HEIGHT"] == 288


def test_export_has_the_released_names_and_reads_back(exported, model, clip_file, golden):
    content = load_checkpoint(exported)
    state = content["state_dict"]
    assert set(content) == {"state_dict", "cmc", "mAP", "mINP", "epoch"}
    assert content["cmc"].shape == (20,) and content["cmc"][4] == 0.6 and content["mAP"] == 0.4
    depth = {"layer1": 1, "layer2": 2, "layer3": 1, "layer4": 1, "resblocks": 1}

    def is_of_this_depth(name):
        parts = name.split(".")
        return all(int(parts[parts.index(p) + 1]) < n for p, n in depth.items() if p in parts)

    assert set(state) == {name for name in golden.json("released_checkpoint_keys") if is_of_this_depth(name)}
    for name, shape in (("thermal_module.thermal.attnpool.positional_embedding", (1 + 6 * 3, 512)),
                        ("prompt_learner.cls_ctx_rgb", (5, 4, 64)), ("prompt_learner.token_prefix_ir", (1, 6, 64)),
                        ("prompt_learner.token_suffix_ir", (1, 67, 64))):
        assert state[name].shape == shape
    assert torch.equal(outputs(model_from_checkpoint(content, exported)), outputs(model))
    clip = load_clip(clip_file)
    assert torch.equal(state["visible_module.visible.layer1.0.conv1.weight"], clip.visual.layer1[0].conv1.weight)
    assert torch.equal(state["text_encoder.text_projection"], clip.text_projection)


def test_a_checkpoint_without_prompts_gets_one_per_modality(ours, clip_file, tmp_path):
    content = torch.load(ours, weights_only=True)
    del content["prompts"], content["metrics"]
    torch.save(content, tmp_path / "prepare_last.pth")
    main([str(tmp_path / "prepare_last.pth"), str(tmp_path / "out.pth"), "--clip_weights", clip_file])
    written = load_checkpoint(tmp_path / "out.pth")
    assert written["state_dict"]["prompt_learner.cls_ctx_rgb"].shape == (1, 4, 64)
    assert "states no results" in describe_released(written)


def test_unused_weights_prompts_and_prefix_do_not_matter(exported, model):
    state = {f"module.{name}": value if our_name(name) else torch.full_like(value, 3)
             for name, value in load_checkpoint(exported)["state_dict"].items()}
    state["module.prompt_learner.cls_ctx_rgb"] = torch.zeros(395, 4, 64)
    assert torch.equal(outputs(model_from_checkpoint({"state_dict": state}, "x.pth")), outputs(model))


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_values_of_numpy_1_and_2(core, exported, tmp_path):
    """The same file with numpy's functions pickled under the names of either version."""
    made = np._core.multiarray.scalar.__module__.encode()
    with zipfile.ZipFile(exported) as read, zipfile.ZipFile(tmp_path / "renamed.pth", "w") as write:
        for entry in read.namelist():
            data = read.read(entry)
            write.writestr(entry, data.replace(made, core) if entry.endswith("data.pkl") else data)
    content = load_checkpoint(tmp_path / "renamed.pth")
    assert content["mAP"] == 0.4 and content["cmc"][0] == 0.5 and content["epoch"] == 7


def test_wrong_files_are_refused(exported, ours, golden, tmp_path):
    content = load_checkpoint(exported)["state_dict"]
    for state, size, sentence in ((content, (288, 144), r"positional_embedding has shape \(19, 512\); expected \(163,"),
                                  (None, (None, None), "holds no image side")):
        with pytest.raises(UserError, match=sentence):
            model_from_checkpoint({"state_dict": state}, "x.pth", *size)
    other = tmp_path / "other.pt"
    torch.save(golden.recipe.clip_state_dict(3, width=8, embed=128, text_width=64, text_layers=1), other)
    for words, sentence in (((exported, tmp_path / "again.pth"), "released format already"),
                            ((ours, ours), "is there already"),
                            ((ours, tmp_path / "out.pth", "--clip_weights", other), "--clip_weights")):
        with pytest.raises(UserError, match=sentence):
            main([*map(str, words)])
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


def test_script_refuses_other_data_unless_asked(ours, tmp_path, monkeypatch, capsys):
    scripts.without_report(monkeypatch)
    torch.save({**torch.load(ours, weights_only=True), "dataset": "RegDB", "trial": 3}, tmp_path / "regdb.pth")
    root = trees.people_tree(tmp_path / "data", ids={"train": (1,), "val": (2,), "test": (3, 4)})
    words = ["--resume_path", tmp_path / "regdb.pth", "DATASET.ROOT", root, "DATASET.CHECK_COUNTS", "False", "DEVICE",
             "cpu", "OUTPUT_DIR", tmp_path / "out", "TEST.TRIALS", 2, "TEST.MODE", "both"]
    assert scripts.call(scripts.load("test"), words) == 2
    assert "was trained on RegDB trial 3, not on SYSU-MM01" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/metrics.json"))
    assert scripts.call(scripts.load("test"), ["--allow_other_data", *words]) == 0
    record = json.loads(next(tmp_path.glob("**/metrics.json")).read_text())
    assert [r["mode"] for r in record["results"]] == ["all", "indoor"] and record["epoch"] == 7
    assert record["results"][1]["per_trial"][1]["trial"] == 1


def test_another_trial_or_other_images_are_other_data():
    def manifest(digest):
        return {"train": {"rgb": {"images": 9, "paths": digest, "files": ""}}, "test": {}}

    check, facts = scripts.load("test").check_same_data, {"dataset": "RegDB", "trial": 2, "manifest": manifest("a")}
    check(facts, "x.pth", facts)
    check({}, "x.pth", facts)
    with pytest.raises(UserError, match="trained on RegDB trial 2, not on RegDB trial 3.*--allow_other_data"):
        check(facts, "x.pth", {**facts, "trial": 3})
    with pytest.raises(UserError, match="another copy of RegDB: here are train rgb images of other names"):
        check({**facts, "manifest": manifest("b")}, "x.pth", facts)
