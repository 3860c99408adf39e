"""Weights as safetensors: written with a model card, read by test.py, from file or Hub."""
import json

import pytest
import scripts
import torch
import trees
from safetensors import safe_open

from configs.defaults import as_dict, load_config
from model.cclnet import CCLNet
from model.published import FILE_NAME, as_safetensors, load_checkpoint, model_card
from model.towers.registry import load_tower
from tools.export_released import main as export
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
    assert text.startswith("---\nlicense: mit\n") and "# Ours" in text
    for words in ("32 x 16 pixels", "stage finetune, epoch 7", "SYSU all-search", "| 50.00 |", "| 41.25 |",
                  f"--resume_path {FILE_NAME}"):
        assert words in text, words
    half = {"config": {"INPUT": {"NORMALISATION": "half"}}}
    assert "mean and deviation of `imagenet`" in text and "deviation of `half`" in model_card("", half, "mit")


def test_the_released_format_is_published_too(checkpoint, folder, tmp_path):
    export([str(checkpoint), str(tmp_path / "released.pth")])
    export([str(tmp_path / "released.pth"), str(tmp_path / "out"), "--safetensors"])
    ours, read = load_checkpoint(folder / FILE_NAME), load_checkpoint(tmp_path / "out" / FILE_NAME)
    assert all(torch.equal(value, read["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert "config" not in read and "CCLNet on unknown data" in (tmp_path / "out/README.md").read_text()


def test_it_is_tested_beside_itself(folder, tree, monkeypatch):
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
