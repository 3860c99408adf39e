"""Weights as safetensors: written with a model card, read by test.py, from file or Hub."""
import json
import re
import shutil

import pytest
import scripts
import torch
import trees
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from configs.defaults import as_dict, load_config
from data import augment
from model.cclnet import CCLNet
from model.published import FILE_NAME, as_safetensors, load_checkpoint
from model.towers.registry import load_tower
from report.lists import GAP, STEP_Y
from report.page import jpeg_text
from tools.export_released import main as export
from tools.lib.model_card import NORMALISED_WITH, model_card
from utils.checkpoint import save_json
from utils.errors import UserError

NUMBERS = {"rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "rank20": 0.8, "mAP": 0.4125, "mINP": 0.3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("people") / "data")


@pytest.fixture(scope="module")
def checkpoint(tree, tiny_clip_file, tmp_path_factory):
    """A checkpoint as train_clip.py writes it."""
    path = tmp_path_factory.mktemp("ours") / "model_last.pth"
    config = as_dict(load_config(None, scripts.settings(DATASET__ROOT=tree, MODEL__CLIP_WEIGHTS=tiny_clip_file)))
    model = CCLNet(load_tower(tiny_clip_file, height=32, width=16))
    torch.save({"format": "cclnet-2", "stage": "finetune", "epoch": 7, "state_dict": model.state_dict(),
                "model": model.describe(), "prompts": {m: {"context": torch.ones(5, 4, 64)} for m in ("rgb", "ir")},
                "metrics": {"protocol": "SYSU all-search", "trials": 10, **NUMBERS}, "config": config,
                "trial": 1}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """What --safetensors writes."""
    folder = tmp_path_factory.mktemp("published") / "model"
    export([str(checkpoint), str(folder), "--safetensors", "--licence", "mit", "--title", "Ours"])
    return folder


def test_weights_and_description_read_back(checkpoint, folder, tree):
    ours, read = load_checkpoint(checkpoint), load_checkpoint(folder / FILE_NAME)
    assert ours["state_dict"].keys() == read["state_dict"].keys()
    assert all(torch.equal(value, read["state_dict"][name]) for name, value in ours["state_dict"].items())
    for key in ("stage", "epoch", "metrics", "model", "trial"):
        assert read[key] == ours[key]
    assert read["config"]["INPUT"] == ours["config"]["INPUT"]
    text = json.dumps({key: value for key, value in read.items() if key != "state_dict"})
    assert str(tree) not in text and "CLIP_WEIGHTS" not in text      # paths of the machine that trained
    with safe_open(folder / FILE_NAME, "pt") as file:      # as others read it
        assert file.metadata()["format"] == "pt" and "neck.weight" in file.keys()


def test_model_card(folder):
    text = (folder / "README.md").read_text()
    for words in ("# Ours", "32 x 16 pixels", "stage finetune, epoch 7", "| SYSU all-search | 50.00 |", "| 41.25 |",
                  "**Method**: CCLNet: each modality has", "Base model**: tiny\\_clip.pt; network clip\\_resnet"):
        assert words in text, words
    assert "normalised with ImageNet's mean" in text and set(NORMALISED_WITH) == set(augment.NORMALISATIONS)
    read = ModelCard(text).data
    assert read.license == "mit" and {"cclnet", "clip_resnet", "clip", "unsupervised"} <= set(read.tags)
    assert [(read.eval_results[i].metric_name, read.eval_results[i].metric_value) for i in (0, 4)] == [
        ("Rank-1", 50), ("mAP", 41.25)]
    theirs = {"dataset": "x](http://a)\n# <script>\x1b[31m", "config": 3}
    card = model_card(theirs, [{"protocol": "|`", **NUMBERS}], "mit")
    assert "# A network on x\\](http://a)\\\\n\\# &lt;script&gt;\\\\x1b\\[31m\n" in card and "\n| \\|\\` |" in card


@pytest.mark.parametrize("method, kind, says, tags", [
    ("rpnr", "agw", "Yin et al., \"Robust Pseudo-label", {"rpnr", "agw", "unsupervised"}),
    ("mine", "clip_vit", "**Method**: mine\n", {"clip_vit", "clip", "unsupervised"}),
    ("cclnet-true-links", "transreid", "It was told identities in training: a bound.", {"transreid"})])
def test_a_card_names_method_and_tower_as_they_are(method, kind, says, tags):
    card = model_card({"config": {"METHOD": {"NAME": method}}, "model": {"kind": kind}, "dataset": "demo",
                       "selected": "best Rank-1 on test data"}, [], "mit", repository="https://a.b/c")
    assert says in card and set(ModelCard(card).data.tags) == {"person-re-identification", "visible-infrared", *tags}
    assert "chosen on test data" in card and "drawn people" in card and "(https://a.b/c)" in card


def test_the_snippet_of_a_card_runs(folder, monkeypatch, capsys):
    [code] = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    for name, colour in (("visible.jpg", "red"), ("infrared.jpg", "grey")):
        Image.new("RGB", (16, 32), colour).save(name)
    exec(code, {})
    assert 0 <= float(capsys.readouterr().out) <= 2


def test_a_card_has_all_tests_and_a_picture(checkpoint, tree, tmp_path, monkeypatch, capsys):
    scripts.without_report(monkeypatch)
    path = shutil.copy(checkpoint, tmp_path)
    words = [path, str(tmp_path / "out"), "--safetensors", "--picture"]
    with pytest.raises(UserError, match="has none; run test.py"):
        export(words)
    assert scripts.call(scripts.load("test"), ["--resume_path", path, "DATASET.ROOT", tree, "DEVICE", "cpu",
                                               "TEST.MODE", "both"]) == 0
    shown = {"image": "a", "right": True}
    content = {"images": {"a": jpeg_text(Image.new("RGB", (8, 16)), 8, 16)},
               "tests": [{"before": "", "lists": [{"kind": "worst", "before": None, "average_precision": 1.0,
                                                   "query": shown, "gallery": [shown]}]}],
               "map": {"points": [[0, 0], [1, 1]], "persons": [1, 1], "modalities": ["rgb", "ir"], "cameras": [1, 2],
                       "perplexity": 1}}
    [tested] = tmp_path.glob("tests/*")
    save_json(tested / "report_data/test.json", content)
    export(words)
    card = (tmp_path / "out/README.md").read_text()
    assert len(ModelCard(card).data.eval_results) == 12 and "![Ranked lists](ranked_lists.png)" in card
    assert Image.open(tmp_path / "out/ranked_lists.png").size[1] == STEP_Y + GAP      # one list


def test_the_released_format_is_published_too_and_tested_beside_itself(checkpoint, folder, tree, tmp_path, monkeypatch):
    export([str(checkpoint), str(tmp_path / "released.pth")])
    export([str(tmp_path / "released.pth"), str(tmp_path / "out"), "--safetensors"])
    ours, read = load_checkpoint(folder / FILE_NAME), load_checkpoint(tmp_path / "out" / FILE_NAME)
    assert all(torch.equal(value, read["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert "config" not in read and "A network on unknown data" in (tmp_path / "out/README.md").read_text()
    scripts.without_report(monkeypatch)
    words = ["DATASET.ROOT", tree, "DEVICE", "cpu", "TEST.TRIALS", 1]
    assert scripts.call(scripts.load("test"), ["--resume_path", folder / FILE_NAME, *words]) == 0
    assert json.loads(next(folder.glob("tests/model-*/metrics.json")).read_text())["epoch"] == 7


def test_what_is_refused(folder, tmp_path, checkpoint):
    path, whole = tmp_path / FILE_NAME, (folder / FILE_NAME).read_bytes()
    for data in (whole[:len(whole) // 2], b"[" * 999, as_safetensors({"state_dict": {}}).replace(b"{}", b"[]")):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read"):
            load_checkpoint(path)
    (tmp_path / "out").mkdir()
    for place in ("out/README.md", "out.pth", "folder"):        # a file of the user's, the same twice, a file as folder
        (tmp_path / place).write_text("mine")
    for words in (["out", "--safetensors"], ["out.pth"], ["folder", "--safetensors"]):
        with pytest.raises(UserError, match="is there already, and is not replaced"):
            export([str(checkpoint), str(tmp_path / words[0]), *words[1:]])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["README.md"]
    assert (tmp_path / "out/README.md").read_text() == (tmp_path / "out.pth").read_text() == "mine"
    with pytest.raises(UserError, match="names no model"):
        load_checkpoint("hf://owner")


def test_from_the_hub(folder, monkeypatch):
    """hf://OWNER/NAME is fetched by huggingface_hub; a model that is not there ends in one sentence."""
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        if repository != "lab/ours":
            raise OSError("404 Client Error.\nRepository Not Found")
        return str(folder / FILE_NAME)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: None)
    assert load_checkpoint("hf://lab/ours")["epoch"] == load_checkpoint("hf://lab/ours/other.safetensors")["epoch"] == 7
    with pytest.raises(UserError, match="hf://lab/none cannot be fetched .OSError: 404 Client Error. Repository Not F"):
        load_checkpoint("hf://lab/none")
    assert asked == [("lab/ours", FILE_NAME), ("lab/ours", "other.safetensors"), ("lab/none", FILE_NAME)]
