"""One table of bad input: each ends in one sentence with the remedy and exit code 2, and nothing is written.

Rows whose sentence is None are odd but right: they must run.
"""
import hashlib
import shutil

import numpy as np
import pytest
import scripts
import torch
from PIL import Image

SCRIPTS = {name: scripts.load(name) for name in ("train_prepare", "train_clip", "test")}


class Place:
    """Where a case happens: a data set of its own, a new OUTPUT_DIR, and settings that it may break."""

    def __init__(self, base, finished, clip):
        self.base, self.finished, self.clip = base, finished, clip
        self.data, self.run = base / "data", base / "run"
        shutil.copytree(finished / "data", self.data, copy_function=shutil.copy2)
        self.settings = {"DATASET__ROOT": self.data, "OUTPUT_DIR": self.run, "MODEL__CLIP_WEIGHTS": clip}
        self.tested = []

    def set(self, **changes):
        self.settings.update(changes)

    def words(self):
        return [*self.tested, *scripts.settings(**self.settings)]

    def file(self):
        (self.base / "file").write_text("hello")
        return self.base / "file"

    def test(self, path):
        self.tested = ["--resume_path", path]

    def one_cluster(self):
        """Pseudo labels without a manifest."""
        self.set(PSEUDO_LABEL_DIR=self.base / "labels")
        (self.base / "labels").mkdir()
        for name, size in (("rgb", 32), ("ir", 16)):
            np.save(self.base / f"labels/train_{name}_resized_pseudo_label.npy", np.zeros(size, int))

    def checkpoint(self, change=lambda content: None):
        """The finished run's checkpoint with changes, to be tested."""
        content = torch.load(self.finished / "run" / "model_last.pth", weights_only=True)
        change(content)
        torch.save(content, self.base / "model.pth")
        self.test(self.base / "model.pth")

    def resumed(self, **changes):
        """The finished run's folder, to go on in."""
        shutil.copytree(self.finished / "run", self.run)
        self.set(DATASET__ROOT=self.finished / "data", **changes)


def odd_but_right(place):
    for path in place.data.glob("cam*/0001/*.jpg"):
        Image.new("RGB", (1, 1), (200, 30, 30)).save(path)
    place.data = place.data.rename(place.base / "dönn Bilder 数据")
    clip = shutil.copy(place.clip, place.base / "my clip é.pt")
    place.set(DATASET__ROOT=place.data, OUTPUT_DIR=place.base / "läufe mit leer", MODEL__CLIP_WEIGHTS=clip,
              CLUSTER__K1=10_000, CLUSTER__K2=500, SAMPLER__CLUSTERS=1, SAMPLER__INSTANCES=1, SAMPLER__ITERATIONS=2)


def of_before(content):
    """Names of a checkpoint as they were before the settings of a method stood beside it."""
    config = content["config"]
    config["MEMORY"] = {"METHOD": "cclnet", "SWAP_EPOCH": 2, "MATCH_BY": "prototype", "TEMPERATURE": 0.05}
    config["FINETUNE"]["RESTART_AT_SWAP"] = config["FINETUNE"].pop("RESTART_AT_CROSS")
    config["CHECKPOINT"] = {"MINUTES": 10}
    del config["METHOD"]
    content["model"]["kind"] = "resnet"


def other_data(place):
    place.resumed()
    Image.new("RGB", (12, 24)).save(place.data / "cam1" / "0001" / "0009.jpg")
    place.set(DATASET__ROOT=place.data)


CASES = {       # name: script, what changes a Place, a part of what is said or None if it must run
    "unknown key": ("train_prepare", lambda p: p.set(CLUSTER__ESP=0.5), "did you mean CLUSTER.EPS?"),
    "unknown data set": ("train_prepare", lambda p: p.set(DATASET__NAME="market"), "choose sysu, regdb"),
    "cuda without a GPU": ("train_prepare", lambda p: p.set(DEVICE="cuda"), "set DEVICE to auto or cpu"),
    "output folder is a file": ("train_prepare", lambda p: p.set(OUTPUT_DIR=p.file()), "choose another"),
    # data
    "root is missing": ("train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "no"), "Set DATASET.ROOT"),
    "the demo below a file": ("train_prepare", lambda p: p.set(DATASET__NAME="demo", DATASET__ROOT=p.file() / "demo"),
                              "set DATASET.ROOT to another folder"),
    "id file is missing": ("train_prepare", lambda p: (p.data / "exp/test_id.txt").unlink(), "id.txt is missing"),
    "camera is missing": ("train_prepare", lambda p: shutil.rmtree(p.data / "cam6"), "cam6 is missing"),
    "counts differ": ("train_prepare", lambda p: p.set(DATASET__CHECK_COUNTS=True), "DATASET.CHECK_COUNTS False"),
    "images of 1 x 1 pixel, a large k1, batches of one image, other alphabets": ("train_prepare", odd_but_right, None),
    # weights and labels
    "weights are missing": ("train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.base / "no.pt"), "are missing"),
    "weights are no archive": ("train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.file()), "cannot be read"),
    "another tower's name": ("train_prepare", lambda p: p.set(MODEL__NAME="ViT-B-16"), "MODEL.NAME is ViT-B-16, a vis"),
    "no labels": ("train_clip", lambda p: None, "Make them with train_prepare.py"),
    "one cluster, without a manifest as before": ("train_clip", lambda p: p.one_cluster(), None),
    # checkpoints
    "checkpoint is missing": ("test", lambda p: p.test(p.base / "no.pth"), "is missing"),
    "checkpoint of another size": ("test", lambda p: (p.checkpoint(), p.set(INPUT__HEIGHT=64)), "INPUT.HEIGHT 32, now"),
    "checkpoint of another data set": ("test", lambda p: p.checkpoint(lambda c: c.update(dataset="RegDB")),
                                       "--allow_other_data"),
    "state file as checkpoint": ("test", lambda p: p.test(p.finished / "run/prepare_state.pth"), "holds no image side"),
    "a checkpoint of before": ("test", lambda p: p.checkpoint(of_before), None),
    "resuming with another seed": ("train_prepare", lambda p: p.resumed(SEED=2), "SEED 1, now it is 2"),
    "resuming with other images": ("train_prepare", other_data, "33 train rgb images instead of 32"),
    "resuming with more epochs, other tests, images held elsewhere": (
        "train_prepare", lambda p: p.resumed(PREPARE__EPOCHS=2, TEST__EVERY=3, DATASET__CACHE="mmap"), None),
}


def files_under(folder):
    """Relative path -> hash of every file and folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in folder.rglob("*")} if folder.exists() else None


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, finished, tiny_clip_file, tmp_path, capsys, monkeypatch):
    scripts.without_report(monkeypatch)
    place = Place(tmp_path, finished, tiny_clip_file)
    script, break_it, sentence = CASES[case]
    break_it(place)
    before = files_under(place.run)
    capsys.readouterr()
    code = scripts.call(SCRIPTS[script], place.words())
    said = capsys.readouterr().err.strip()
    if sentence is None:
        assert (code, said) == (0, "")
        return
    assert code == 2 and said.startswith("error: ") and "\n" not in said, said
    assert sentence in said and len(said) < 700, said
    assert files_under(place.run) == before
