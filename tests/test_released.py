"""Released checkpoints: read from files of exactly their keys and shapes, written from ours, tested with test.py."""
import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from PIL import Image

from model.cclnet import CCLNet
from model.clip import load_clip
from model.published import load_checkpoint
from model.released import (
    describe_released,
    model_from_checkpoint,
    our_name,
    released_input_size,
    released_name,
    released_state,
)
from tools.export_released import main
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("CCLNET_GOLDEN", REPOSITORY / "tests" / "golden"))
HEIGHT, WIDTH = 96, 48


def _import(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = _import("golden_recipe", REPOSITORY / "tests" / "golden" / "recipe.py")
script = _import("test_script", REPOSITORY / "test.py")     # "test" is a package of Python itself


def run_script(monkeypatch, *arguments):
    """test.py's main with a command line."""
    monkeypatch.setattr(sys, "argv", ["test.py", *map(str, arguments)])
    script.main()


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """A small CLIP of another width and depth than RN50."""
    path = tmp_path_factory.mktemp("clip") / "small.pt"
    torch.save(recipe.clip_state_dict(3, layers=(1, 2, 1, 1), width=16, embed=128, text_width=64, text_layers=1), path)
    return path


@pytest.fixture(scope="module")
def model(clip_file):
    """A model whose every weight differs from CLIP's, as after training."""
    model = CCLNet(load_clip(str(clip_file)).visual, HEIGHT, WIDTH).eval()
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
                "prompts": {"rgb": {"context": torch.ones(5, 4, 64)}, "ir": {"context": torch.ones(3, 4, 64)}},
                "metrics": {"rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "rank20": 0.8, "mAP": 0.4, "mINP": 0.3},
                "config": {"MODEL": {"CLIP_WEIGHTS": str(clip_file)}, "INPUT": {"HEIGHT": HEIGHT, "WIDTH": WIDTH}},
                "dataset": "SYSU-MM01", "trial": 1}, path)
    return path


@pytest.fixture(scope="module")
def exported(ours):
    """The same in the released format."""
    out = ours.with_name("released.pth")
    main([str(ours), str(out)])
    return out


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Four persons in SYSU-MM01's layout; 3 and 4 are the test persons."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    (root / "exp").mkdir()
    for split, ids in (("train", "1"), ("val", "2"), ("test", "3,4")):
        (root / "exp" / f"{split}_id.txt").write_text(ids)
    for camera in range(1, 7):
        (root / f"cam{camera}").mkdir()
        for person in range(1, 5) if camera in (1, 3) else ():
            folder = root / f"cam{camera}" / f"{person:04d}"
            folder.mkdir()
            Image.fromarray(rng.integers(0, 255, (60, 30, 3), dtype=np.uint8)).save(folder / "0001.jpg")
    return root


def overrides(tree, output):
    return ["DATASET.ROOT", tree, "DATASET.CHECK_COUNTS", "False", "OUTPUT_DIR", output, "TEST.TRIALS", "2",
            "DATASET.CACHE_DIR", output / "cache", "DEVICE", "cpu"]


def images(height=HEIGHT, width=WIDTH):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(5))


def features(model, height=HEIGHT, width=WIDTH):
    """What a model says of two images in both modalities."""
    with torch.no_grad():
        return torch.cat([t for m in ("rgb", "ir") for t in model.encode_image(images(height, width), m)], dim=1)


def rewritten(source, target, old, new):
    """A checkpoint whose pickled names are replaced."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w") as write:
        for entry in read.namelist():
            content = read.read(entry)
            if entry.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new)
            write.writestr(entry, content)
    return target


def test_names_map_both_ways(model):
    keys = json.loads((GOLDEN / "released_checkpoint_keys.json").read_text())
    for name in model.state_dict():
        assert our_name(released_name(name)) == name
    assert len({our_name(k) for k in keys} - {None}) == sum(our_name(k) is not None for k in keys)
    assert our_name("base_resnet.base.conv1.weight") is None
    assert our_name("visible_module.visible.layer1.0.conv1.weight") is None
    assert our_name("prompt_learner.cls_ctx_rgb") is None
    with pytest.raises(KeyError):
        released_name("text.positional_embedding")


def test_exact_released_file_is_tested_without_clip(tmp_path, tree, monkeypatch, capsys):
    shapes = json.loads((GOLDEN / "released_checkpoint_keys.json").read_text())
    state = {}
    for name, shape in shapes.items():
        value = 1 if name.endswith("num_batches_tracked") else 1.0 if "running_var" in name else 0.01
        state[name] = torch.tensor(value).expand(shape)           # one number in the file, whatever the shape
    path = tmp_path / "model_best.pth"
    torch.save({"state_dict": state, "cmc": np.linspace(0.55, 0.9, 20), "mAP": np.float64(0.5038),
                "mINP": np.float64(0.37), "epoch": 57}, path)
    monkeypatch.setattr("processor.setup.load_clip", None)
    run_script(monkeypatch, "--resume_path", path, *overrides(tree, tmp_path / "out"))
    said = capsys.readouterr().out
    assert "released format, epoch 57, states Rank-1 0.5500, mAP 0.5038, mINP 0.3700" in said
    assert "362 of its 1176 weights used" in said and "814 ignored" in said and "10 rgb, 8 ir" in said
    record = json.loads((tmp_path / "out/tests/model_best-python-all/metrics.json").read_text())
    assert record["epoch"] == 57 and record["selection"] == "as released" and 0 < record["rank1"] <= 1


def test_results_of_another_checkpoint_of_the_same_name_lie_beside_those_of_the_run(tmp_path):
    """A downloaded model_best.pth beside the run's own; two downloads; a run that was moved keeps its place."""
    folder, run = scripts.load("test").results_folder, tmp_path / "run"
    downloads = [tmp_path / name / "model_best.pth" for name in ("march", "november")]
    assert folder(run, downloads[0], "python-all") == run / "tests/model_best-python-all"
    assert folder(run, None, "python-all") == run / "tests/baseline_clip-python-all"
    tested = run / "tests/model_best-python-all/metrics.json"
    tested.parent.mkdir(parents=True)
    tested.write_text(json.dumps({"checkpoint": str(downloads[0])}))
    assert folder(run, downloads[0], "python-all") == tested.parent
    assert folder(run, downloads[1], "python-all") == run / "tests/november-model_best-python-all"
    assert folder(run, run / "model_best.pth", "python-all") == tested.parent
    tested.write_text("{")
    assert folder(run, downloads[1], "python-all") == tested.parent
    (run / "model_best.pth").touch()
    for address in ("hf://lab/model_best", tmp_path / "march/model_best.safetensors"):
        assert folder(run, address, "python-all").name in ("lab-model_best-python-all", "march-model_best-python-all")
    assert folder(run, downloads[0], "python-all") == run / "tests/march-model_best-python-all"
    assert folder(run, run / "model_best.pth", "python-all") == tested.parent


def test_export_has_the_released_names_and_reads_back(exported, model, clip_file):
    content = load_checkpoint(exported)
    assert set(content) == {"state_dict", "cmc", "mAP", "mINP", "epoch"}
    assert content["cmc"].shape == (20,) and content["cmc"][4] == 0.6 and content["mAP"] == 0.4
    expected = json.loads((GOLDEN / "released_checkpoint_keys.json").read_text())
    depth = {"layer1": 1, "layer2": 2, "layer3": 1, "layer4": 1, "resblocks": 1}

    def is_of_this_depth(name):
        parts = name.split(".")
        return all(int(parts[parts.index(p) + 1]) < n for p, n in depth.items() if p in parts)

    assert set(content["state_dict"]) == {name for name in expected if is_of_this_depth(name)}
    state = content["state_dict"]
    assert state["thermal_module.thermal.attnpool.positional_embedding"].shape == (1 + 6 * 3, 512)
    assert state["prompt_learner.cls_ctx_rgb"].shape == (5, 4, 64)
    assert state["prompt_learner.token_prefix_ir"].shape == (1, 6, 64)
    assert state["prompt_learner.token_suffix_ir"].shape == (1, 67, 64)
    read = model_from_checkpoint(content, exported, HEIGHT, WIDTH)
    assert torch.equal(features(read), features(model))
    clip = load_clip(str(clip_file))
    assert torch.equal(state["visible_module.visible.layer1.0.conv1.weight"], clip.visual.layer1[0].conv1.weight)
    assert torch.equal(state["text_encoder.text_projection"], clip.text_projection)


def test_export_of_a_prepare_checkpoint_has_one_prompt_per_modality(ours, clip_file, tmp_path):
    content = torch.load(ours, weights_only=True)
    del content["prompts"], content["metrics"]
    torch.save(content, tmp_path / "prepare_last.pth")
    main([str(tmp_path / "prepare_last.pth"), str(tmp_path / "out.pth"), "--clip_weights", str(clip_file)])
    written = load_checkpoint(tmp_path / "out.pth")
    assert written["state_dict"]["prompt_learner.cls_ctx_rgb"].shape == (1, 4, 64)
    assert "states no results" in describe_released(written)


def test_unused_weights_prompts_and_prefix_do_not_matter(exported, model):
    content = load_checkpoint(exported)
    state = {name: value if our_name(name) else torch.full_like(value, 3)
             for name, value in content["state_dict"].items()}
    state["prompt_learner.cls_ctx_rgb"] = torch.zeros(395, 4, 64)
    content["state_dict"] = {f"module.{name}": value for name, value in state.items()}
    assert torch.equal(features(model_from_checkpoint(content, "x.pth", HEIGHT, WIDTH)), features(model))
    assert released_input_size(released_state(content)) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_values_of_numpy_1_and_2(core, exported, tmp_path):
    made = np._core.multiarray.scalar.__module__.encode()
    path = rewritten(exported, tmp_path / "renamed.pth", made, core)
    content = load_checkpoint(path)
    assert content["mAP"] == 0.4 and content["cmc"][0] == 0.5 and content["epoch"] == 7


def test_pickled_code_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {}, "cmc": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="cannot be read safely"):
        load_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_wrong_files_are_refused(exported, ours, tmp_path):
    content = load_checkpoint(exported)
    with pytest.raises(UserError, match="18 map cells"):
        model_from_checkpoint(content, "x.pth", 288, 144)
    damaged = dict(content["state_dict"])
    del damaged["bottleneck.running_mean"]
    with pytest.raises(UserError, match="does not fit together"):
        model_from_checkpoint({"state_dict": damaged}, "x.pth", HEIGHT, WIDTH)
    damaged = {**content["state_dict"], "bottleneck.weight": torch.full((512,), float("nan"))}
    with pytest.raises(UserError, match="NaN or Inf in neck.weight"):
        model_from_checkpoint({"state_dict": damaged}, "x.pth", HEIGHT, WIDTH)
    with pytest.raises(UserError, match="holds no image side"):
        model_from_checkpoint({"weights": 1}, "x.pth", HEIGHT, WIDTH)
    with pytest.raises(UserError, match="released format already"):
        main([str(exported), str(tmp_path / "again.pth")])
    with pytest.raises(UserError, match="the checkpoint itself"):
        main([str(ours), str(ours)])
    other = tmp_path / "other.pt"
    torch.save(recipe.clip_state_dict(3, width=8, embed=128, text_width=64, text_layers=1), other)
    with pytest.raises(UserError, match="--clip_weights"):
        main([str(ours), str(tmp_path / "out.pth"), "--clip_weights", str(other)])


def test_script_refuses_other_data_unless_asked(ours, tree, tmp_path, monkeypatch):
    content = torch.load(ours, weights_only=True)
    torch.save({**content, "dataset": "RegDB", "trial": 3}, tmp_path / "regdb.pth")
    arguments = ["--resume_path", tmp_path / "regdb.pth", *overrides(tree, tmp_path), "TEST.MODE", "both"]
    with pytest.raises(UserError, match="was trained on RegDB trial 3, not on SYSU-MM01"):
        run_script(monkeypatch, *arguments)
    assert not (tmp_path / "tests").exists()
    run_script(monkeypatch, "--allow_other_data", *arguments)
    record = json.loads((tmp_path / "tests/regdb-python-both/metrics.json").read_text())
    assert [r["mode"] for r in record["results"]] == ["all", "indoor"] and record["epoch"] == 7
    assert record["mode"] == "all" and record["rank1"] == record["results"][0]["rank1"]
    assert record["results"][1]["per_trial"][1]["trial"] == 1


def test_another_trial_or_other_images_are_other_data():
    def manifest(digest):
        return {"train": {"rgb": {"images": 9, "paths": digest, "files": ""}}, "test": {}}

    facts = {"dataset": "RegDB", "trial": 2, "manifest": manifest("a")}
    script.check_same_data(facts, "x.pth", facts)
    script.check_same_data({}, "x.pth", facts)
    with pytest.raises(UserError, match="trained on RegDB trial 2, not on RegDB trial 3.*--allow_other_data"):
        script.check_same_data(facts, "x.pth", {**facts, "trial": 3})
    with pytest.raises(UserError, match="another copy of RegDB: here are train rgb images of other names"):
        script.check_same_data({**facts, "manifest": manifest("b")}, "x.pth", facts)
