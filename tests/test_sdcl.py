"""SDCL and label unification from the command line, on small data."""
import json

import numpy as np
import pytest
import scripts
import torch
import trees

from data.pseudo_labels import FILE_NAMES, save_pseudo_labels
from model.published import load_checkpoint
from processor.run.folder import read_rows
from utils.modality import Modality

IDS = {"train": (1, 2, 3, 4), "val": (), "test": (5, 6, 7)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("data"), ids={**IDS, "val": (8,)})


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Calls a script with settings, SECTION__KEY, that writes to a folder of a name: its exit code, the folder."""
    scripts.without_report(monkeypatch)

    def call(script, folder, **changes):
        words = scripts.settings(DATASET__ROOT=root, OUTPUT_DIR=tmp_path / folder, CLUSTER__K1=4,
                                 SAMPLER__ITERATIONS=2, TEST__TRIALS=1, **changes)
        return scripts.call(scripts.load(script), words), tmp_path / folder
    return call


def sdcl(ics_file, **changes):
    return {"MODEL__CLIP_WEIGHTS": ics_file, "METHOD__NAME": "sdcl", "METHOD__CROSS_EPOCH": 1, "METHOD__UNIFY_EPOCH": 2,
            "METHOD__UNIFY_FROM": "released", "OPTIM__NAME": "sgd", "OPTIM__LR": 0.01, "TEST__MIRRORED": True,
            **changes}


def test_sdcl_trains_resumes_to_the_bit_and_is_tested(ics_file, run):
    """Stochastic depth is drawn by step; the epoch before labels are unified is tested, for the best weights."""
    code, whole = run("train_prepare", "whole", **sdcl(ics_file, PREPARE__EPOCHS=2))
    assert code == 0
    for epochs in (1, 2):
        code, resumed = run("train_prepare", "resumed", **sdcl(ics_file, PREPARE__EPOCHS=epochs))
        assert code == 0
    states = [load_checkpoint(folder / "prepare_last.pth")["state_dict"] for folder in (whole, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    contrasts = {"loss_rgb", "loss_ir", "loss_rgb_shallow", "loss_ir_shallow"}
    for row, across in zip(read_rows(whole), ("rgb_ir", "ir_rgb"), strict=True):
        near = {f"loss_near_{pair}{depth}" for pair in ("rgb_rgb", "ir_ir", across) for depth in ("", "_shallow")}
        assert {name for name in row if name.startswith("loss")} == contrasts | near
        assert ("links" in row) == (row["epoch"] == 2) and "test" in row
    assert json.loads((whole / "pseudo_labels/manifest.json").read_text())["unified"] is True
    assert scripts.call(scripts.load("test"), ["--resume_path", whole / "prepare_last.pth"]) == 0


def test_sdcl_on_a_tower_without_shallow_features_is_refused(run, tiny_clip_file, capsys):
    code, folder = run("train_prepare", "refused", METHOD__NAME="sdcl", MODEL__CLIP_WEIGHTS=tiny_clip_file)
    assert code == 2 and not folder.exists()
    assert "SDCL needs shallow features beside deep ones, and MODEL.TOWER clip_resnet has" in capsys.readouterr().err


def test_prompts_of_unified_labels_are_of_those_that_a_modality_has(run, tiny_clip_file):
    """A visible cluster is missing where no visible image was voted into it."""
    words = {"METHOD__NAME": "unify", "METHOD__CROSS_EPOCH": 1, "MODEL__CLIP_WEIGHTS": tiny_clip_file}
    code, folder = run("train_prepare", "unify", **words)
    assert code == 0 and read_rows(folder)[0]["links"] > 0
    labels = {m: np.load(folder / "pseudo_labels" / name) for m, name in FILE_NAMES.items()}
    labels[Modality.RGB][labels[Modality.RGB] == 0] = -1
    other, manifest = folder.with_name("labels"), json.loads((folder / "pseudo_labels/manifest.json").read_text())
    save_pseudo_labels(other, labels, manifest, manifest["unified"], manifest["made"])
    code, folder = run("train_clip", "clip", PSEUDO_LABEL_DIR=other, **words)
    prompts = load_checkpoint(folder / "model_last.pth")["prompts"]
    assert code == 0 and all(len(prompts[m.value]["context"]) == len(set(labels[m]) - {-1}) for m in Modality)
