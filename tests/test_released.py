"""Checkpoints that others read: the released format, read and written, and safetensors with a model card."""
import json
import re
import sys
import zipfile
from types import ModuleType

import numpy as np
import pytest
import scripts
import torch
import trees
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from configs.defaults import as_dict, load_config
from data import augment
from loss.method import Method
from loss.methods import METHODS
from model.cclnet import CCLNet
from model.clip import load_clip
from model.published import FILE_NAME, load_checkpoint
from model.released import describe_released, model_from_checkpoint, our_name
from model.towers.registry import load_tower
from tests.tiny import outputs
from tools.export_released import main as export
from tools.lib.model_card import NORMALISED_WITH, model_card
from utils.errors import UserError

NUMBERS = {"rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "rank20": 0.8, "mAP": 0.4125, "mINP": 0.3}


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    scripts.without_report(monkeypatch)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("people") / "data", 1, {"train": (1,), "val": (2,), "test": (3,)})


@pytest.fixture(scope="module")
def model(tiny_clip_file):
    """A model whose every weight differs from CLIP's, as after training."""
    model = CCLNet(load_tower(tiny_clip_file, height=32, width=16)).eval()
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.1 * torch.rand(value.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def ours(model, tree, tiny_clip_file, tmp_path_factory):
    """A checkpoint as train_clip.py writes it."""
    path = tmp_path_factory.mktemp("ours") / "model_last.pth"
    config = as_dict(load_config(None, scripts.settings(DATASET__ROOT=tree, MODEL__CLIP_WEIGHTS=tiny_clip_file)))
    torch.save({"format": "cclnet-2", "stage": "finetune", "epoch": 7, "state_dict": model.state_dict(),
                "model": model.describe(), "prompts": {m: {"context": torch.ones(5, 4, 64)} for m in ("rgb", "ir")},
                "metrics": {"protocol": "SYSU all-search", "trials": 10, **NUMBERS}, "config": config,
                "dataset": "SYSU-MM01", "trial": 1}, path)
    return path


@pytest.fixture(scope="module")
def exported(ours):
    """The same in the released format."""
    export([str(ours), str(ours.with_name("released.pth"))])
    return ours.with_name("released.pth")


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    """What --safetensors writes."""
    folder = tmp_path_factory.mktemp("published") / "model"
    export([str(ours), str(folder), "--safetensors", "--licence", "mit", "--title", "Ours"])
    return folder


def agw_names(keys):
    """Names and shapes of a checkpoint of PGM or RPNR: three whole ResNet-50s and what stands beside them."""
    copies = {copy + name: shape for copy in keys["copies_and_what_is_read_of_them"]
              for name, shape in keys["backbone"].items()}
    return {f"module.{name}": shape for name, shape in {**copies, **keys["others"]}.items()}


RELEASED = {     # names and shapes, what lies beside them, mirror images, what is said
    "cclnet": (lambda golden, _: golden.json("released_checkpoint_keys"),
               {"cmc": np.linspace(0.55, 0.9, 20), "mAP": np.float64(0.5038), "mINP": np.float64(0.37)}, False,
               "states Rank-1 0.5500, mAP 0.5038, mINP 0.3700; 362 of its 1176 weights used"),
    "agw": (lambda _, field: agw_names(field.json("agw_keys")), {"best_mAP": np.float64(0.5136)}, True,
            "states best mAP 0.5136; 394 of its 1025 weights used")}


@pytest.mark.parametrize("kind", RELEASED)
def test_exact_released_file_is_tested_without_imagenet_or_clip(tree, tmp_path, golden, golden_field, capsys, kind):
    names, beside, mirrored, sentence = RELEASED[kind]
    state = {}
    for name, shape in names(golden, golden_field).items():
        value = 1 if name.endswith("num_batches_tracked") else 1.0 if "running_var" in name else 0.01
        state[name] = torch.tensor(value).expand(shape)           # one number in the file, whatever the shape
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": state, "epoch": 57, **beside}, path)
    words = ["DATASET.ROOT", tree, "DATASET.CHECK_COUNTS", "False", "DEVICE", "cpu", "MODEL.CLIP_WEIGHTS", "no/file",
             "TEST.TRIALS", 1]
    assert scripts.call(scripts.load("test"), ["--resume_path", path, *words]) == 0
    assert f"released format, epoch 57, {sentence}" in " ".join(capsys.readouterr().out.split())
    record = json.loads(next(tmp_path.glob("**/metrics.json")).read_text())
    assert record["epoch"] == 57 and record["selection"] == "as released" and 0 < record["rank1"] <= 1
    assert record["identity"]["TEST.MIRRORED"] is mirrored and record["identity"]["INPUT.HEIGHT"] == 288


def test_export_has_the_released_names_and_reads_back(exported, model, tiny_clip_file, golden):
    content = load_checkpoint(exported)
    state = content["state_dict"]
    assert set(content) == {"state_dict", "cmc", "mAP", "mINP", "epoch"}
    assert content["cmc"].shape == (20,) and content["cmc"][4] == 0.6 and content["mAP"] == 0.4125
    # of every part the first block: that is all of the tiny CLIP
    assert set(state) == {name for name in golden.json("released_checkpoint_keys")
                          if not re.search(r"(layer\d|resblocks)\.[1-9]", name)}
    for name, shape in (("thermal_module.thermal.attnpool.positional_embedding", (1 + 2 * 1, 512)),
                        ("prompt_learner.cls_ctx_rgb", (5, 4, 64)), ("prompt_learner.token_prefix_ir", (1, 6, 64)),
                        ("prompt_learner.token_suffix_ir", (1, 67, 64))):
        assert state[name].shape == shape
    assert torch.equal(outputs(model_from_checkpoint(content, exported)), outputs(model))
    clip = load_clip(tiny_clip_file)
    assert torch.equal(state["visible_module.visible.layer1.0.conv1.weight"], clip.visual.layer1[0].conv1.weight)
    assert torch.equal(state["text_encoder.text_projection"], clip.text_projection)
    changed = {name: value if our_name(name) else torch.full_like(value, 3) for name, value in state.items()}
    assert torch.equal(outputs(model_from_checkpoint({"state_dict": changed}, "x.pth")), outputs(model))


def test_a_checkpoint_without_prompts_gets_one_per_modality(ours, tiny_clip_file, tmp_path):
    content = torch.load(ours, weights_only=True)
    del content["prompts"], content["metrics"]
    torch.save(content, tmp_path / "prepare_last.pth")
    export([str(tmp_path / "prepare_last.pth"), str(tmp_path / "out.pth"), "--clip_weights", tiny_clip_file])
    written = load_checkpoint(tmp_path / "out.pth")
    assert written["state_dict"]["prompt_learner.cls_ctx_rgb"].shape == (1, 4, 64)
    for odd in ({}, {"cmc": None, "mAP": [], "mINP": float("nan")}):
        assert "states no results" in describe_released({**written, **odd})


def test_numbers_pickled_by_numpy_1(exported, tmp_path):
    """The same file with numpy's functions under their former names."""
    made = np._core.multiarray.scalar.__module__.encode()
    with zipfile.ZipFile(exported) as read, zipfile.ZipFile(tmp_path / "renamed.pth", "w") as write:
        for entry in read.namelist():
            data = read.read(entry)
            write.writestr(entry, data.replace(made, b"numpy.core.multiarray") if entry.endswith("data.pkl") else data)
    content = load_checkpoint(tmp_path / "renamed.pth")
    assert content["mAP"] == 0.4125 and content["cmc"][0] == 0.5 and content["epoch"] == 7


def test_other_data_are_refused_unless_asked_for(ours, tree, tmp_path, capsys):
    path, facts = tmp_path / "regdb.pth", torch.load(ours, weights_only=True)
    words = ["--resume_path", path, "DATASET.ROOT", tree, "DEVICE", "cpu", "TEST.TRIALS", 2, "TEST.MODE", "both"]
    images = {"train": {"rgb": {"images": 9, "paths": "others", "files": ""}}, "test": {}}
    for changes, sentence in (({"dataset": "RegDB", "trial": 3}, "was trained on RegDB trial 3, not on SYSU-MM01"),
                              ({"manifest": images}, "another copy of SYSU-MM01: here are")):
        torch.save({**facts, **changes}, path)
        assert scripts.call(scripts.load("test"), words) == 2
        assert sentence in capsys.readouterr().err and not list(tmp_path.glob("**/metrics.json"))
    assert scripts.call(scripts.load("test"), ["--allow_other_data", *words]) == 0
    record = json.loads(next(tmp_path.glob("**/metrics.json")).read_text())
    assert [r["mode"] for r in record["results"]] == ["all", "indoor"] and record["epoch"] == 7


def test_safetensors_hold_weights_and_description(ours, exported, folder, tree, tmp_path):
    """Also of a released file, which has no description; they are tested beside themselves."""
    content, read = load_checkpoint(ours), load_checkpoint(folder / FILE_NAME)
    assert content["state_dict"].keys() == read["state_dict"].keys()
    for key in ("stage", "epoch", "metrics", "model", "trial"):
        assert read[key] == content[key]
    assert read["config"]["INPUT"] == content["config"]["INPUT"]
    text = json.dumps({key: value for key, value in read.items() if key != "state_dict"})
    assert str(tree) not in text and "CLIP_WEIGHTS" not in text      # paths of the machine that trained
    with safe_open(folder / FILE_NAME, "pt") as file:      # as others read it
        assert file.metadata()["format"] == "pt" and "neck.weight" in file.keys()
    export([str(exported), str(tmp_path / "out"), "--safetensors"])
    released = load_checkpoint(tmp_path / "out" / FILE_NAME)
    assert "config" not in released and "A network on unknown data" in (tmp_path / "out/README.md").read_text()
    for state in (read["state_dict"], released["state_dict"]):
        assert all(torch.equal(value, state[name]) for name, value in content["state_dict"].items())
    words = ["--resume_path", folder / FILE_NAME, "DATASET.ROOT", tree, "DEVICE", "cpu", "TEST.TRIALS", 1]
    assert scripts.call(scripts.load("test"), words) == 0
    assert json.loads(next(folder.glob("tests/model-*/metrics.json")).read_text())["epoch"] == 7


def test_model_card(folder, monkeypatch, capsys):
    text = (folder / "README.md").read_text()
    for words in ("# Ours", "32 x 16 pixels", "stage finetune, epoch 7", "| SYSU all-search | 50.00 |", "| 41.25 |",
                  "**Method**: CCLNet: each modality has", "Base model**: tiny\\_clip.pt; network clip\\_resnet"):
        assert words in text, words
    assert "normalised with ImageNet's mean" in text and set(NORMALISED_WITH) == set(augment.NORMALISATIONS)
    read = ModelCard(text).data
    assert read.license == "mit" and {"cclnet", "clip_resnet", "clip", "unsupervised"} <= set(read.tags)
    assert [(read.eval_results[i].metric_name, read.eval_results[i].metric_value) for i in (0, 4)] == [
        ("Rank-1", 50), ("mAP", 41.25)]
    monkeypatch.setitem(sys.modules, "own", ModuleType("own"))      # a file that says nothing of itself
    monkeypatch.setitem(METHODS, "own", type("Own", (Method,), {"__doc__": "Draws links by lot.", "__module__": "own"}))
    assert "**Method**: Draws links by lot." in model_card({"config": {"METHOD": {"NAME": "own"}}}, [], "mit")
    theirs = {"dataset": "x](http://a)\n# <script>\x1b[31m", "config": 3}
    card = model_card(theirs, [{"protocol": "|`", **NUMBERS}], "mit")
    assert "# A network on x\\](http://a)\\\\n\\# &lt;script&gt;\\\\x1b\\[31m\n" in card and "\n| \\|\\` |" in card
    for name in ("cclnet-true-links", "supervised"):
        card = model_card({"config": {"METHOD": {"NAME": name}}, "model": {"kind": "transreid"},
                           "selected": "best Rank-1 on test data"}, [], "mit")
        assert "told identities in training: a bound" in card and "chosen on test data" in card
        assert "unsupervised" not in ModelCard(card).data.tags
    [code] = re.findall("```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    for name, colour in (("visible.jpg", "red"), ("infrared.jpg", "grey")):
        Image.new("RGB", (16, 32), colour).save(name)
    exec(code, {})
    assert 0 <= float(capsys.readouterr().out) <= 2


def test_what_is_refused(folder, ours, exported, golden, tmp_path):
    path, whole = tmp_path / FILE_NAME, (folder / FILE_NAME).read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)
    (tmp_path / "out").mkdir()
    for place in ("out/README.md", "out.pth", "folder"):        # a file of the user's, the same twice, a file as folder
        (tmp_path / place).write_text("mine")
    torch.save(golden.recipe.clip_state_dict(3, width=8, embed=32, text_width=64, text_layers=1), tmp_path / "8.pt")
    there = "is there already, and is not replaced"
    for checkpoint, out, words, sentence in (
            (ours, "out", ["--safetensors"], there), (ours, "out.pth", [], there),
            (ours, "folder", ["--safetensors"], there), (exported, "again.pth", [], "released format already"),
            (ours, "new.pth", ["--clip_weights", str(tmp_path / "8.pt")], "--clip_weights"),
            (ours, "new", ["--safetensors", "--picture"], "has none; run test.py")):
        with pytest.raises(UserError, match=sentence):
            export([str(checkpoint), str(tmp_path / out), *words])
    assert {p.name for p in tmp_path.iterdir()} == {"out", "out.pth", "folder", "8.pt", FILE_NAME}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["README.md"]
    assert (tmp_path / "out/README.md").read_text() == (tmp_path / "out.pth").read_text() == "mine"
    with pytest.raises(UserError, match="names no model"):
        load_checkpoint("hf://owner")


def test_from_the_hub(folder, monkeypatch):
    """hf://OWNER/NAME is fetched by huggingface_hub; a model that is not there ends in one sentence."""
    def download(repository, file):
        assert file == (FILE_NAME if repository == "lab/ours" else "other.safetensors")
        if repository != "lab/ours":
            raise OSError("404 Client Error.\nRepository Not Found")
        return str(folder / FILE_NAME)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: None)
    assert load_checkpoint("hf://lab/ours")["epoch"] == 7
    with pytest.raises(UserError, match="none/other.safetensors cannot be fetched .404 Client Error. Rep"):
        load_checkpoint("hf://lab/none/other.safetensors")
