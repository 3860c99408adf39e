"""A place where one thing is wrong: what the table of bad input breaks."""
import shutil

import numpy as np
import scripts
import torch
from PIL import Image

IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}


class Place:
    """Where a case happens: a data set of its own, a new OUTPUT_DIR, and settings that it may break."""

    def __init__(self, base, finished, clip):
        self.base, self.finished, self.clip = base, finished, clip
        self.data, self.run = base / "data", base / "run"
        shutil.copytree(finished / "data", self.data, copy_function=shutil.copy2)
        self.settings = {"DATASET__ROOT": self.data, "OUTPUT_DIR": self.run, "MODEL__CLIP_WEIGHTS": clip}
        self.flags = []

    def set(self, **changes):
        self.settings.update(changes)

    def words(self):
        return [*self.flags, *scripts.settings(**self.settings)]

    def file(self, name, content=""):
        path = self.base / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def config(self, content):
        self.flags += ["--config_file", self.file("my.yml", content)]

    def weights(self, change=lambda state: None, **replaced):
        """The CLIP file with changes."""
        state = torch.load(self.clip, weights_only=True)
        change(state)
        torch.save({**state, **replaced}, self.base / "clip.pt")
        self.set(MODEL__CLIP_WEIGHTS=self.base / "clip.pt")

    def labels(self, **arrays):
        """Pseudo labels; rgb, ir: arrays instead of right ones."""
        folder = self.base / "labels"
        folder.mkdir()
        for name, size in (("rgb", 32), ("ir", 16)):
            np.save(folder / f"train_{name}_resized_pseudo_label.npy",
                    arrays.get(name, np.repeat(np.arange(4), size // 4)), allow_pickle=True)
        self.set(PSEUDO_LABEL_DIR=folder)
        return folder

    def checkpoint(self, change):
        """The finished run's checkpoint with changes, to be tested."""
        content = torch.load(self.finished / "run" / "model_last.pth", weights_only=True)
        torch.save(change(content) or content, self.base / "model.pth")
        self.flags += ["--resume_path", self.base / "model.pth"]

    def resumed(self, **changes):
        """The finished run's folder, to go on in."""
        shutil.copytree(self.finished / "run", self.run)
        self.set(DATASET__ROOT=self.finished / "data", **changes)


def no_text_tower(place):
    place.weights(lambda state: state.pop("ln_final.weight"))


def odd_but_right(place):
    for path in place.data.glob("cam*/0001/*.png"):
        Image.new("RGB", (1, 1), (200, 30, 30)).save(path)
    place.data = place.data.rename(place.base / "dönn Bilder 数据")
    clip = shutil.copy(place.clip, place.base / "my clip é.pt")
    place.set(DATASET__ROOT=place.data, OUTPUT_DIR=place.base / "läufe mit leer", MODEL__CLIP_WEIGHTS=clip,
              CLUSTER__K1=10_000, CLUSTER__K2=500, SAMPLER__CLUSTERS=1, SAMPLER__INSTANCES=1)


def no_match(place):
    for camera in (1, 2, 4, 5):
        for person in (5, 6):
            shutil.rmtree(place.data / f"cam{camera}" / f"{person:04d}")
    for camera in (3, 6):
        shutil.rmtree(place.data / f"cam{camera}" / "0007")


def same_place_only(place):
    """Infrared of camera 3 and visible of camera 2 alone: the protocol hides every match."""
    for camera in (1, 4, 5, 6):
        for person in IDS["test"]:
            shutil.rmtree(place.data / f"cam{camera}" / f"{person:04d}")


def one_query_without_match(place):
    for camera in (1, 2, 4, 5):
        shutil.rmtree(place.data / f"cam{camera}" / "0005")


def output_is_a_file(place):
    place.set(OUTPUT_DIR=place.file("run.txt"))


def linked_nowhere(place):
    path = place.data / "cam1" / "0001" / "0001.png"
    path.unlink()
    path.symlink_to(place.base / "gone.png")


def of_before(content):
    """Names of a checkpoint as they were before the settings of a method stood beside it."""
    config = content["config"]
    config["MEMORY"] = {"METHOD": "cclnet", "SWAP_EPOCH": 2, "MATCH_BY": "prototype", "TEMPERATURE": 0.05}
    config["FINETUNE"]["RESTART_AT_SWAP"] = config["FINETUNE"].pop("RESTART_AT_CROSS")
    config["CHECKPOINT"] = {"MINUTES": 10}
    del config["METHOD"]
    content["model"]["kind"] = "resnet"


def other_weights_of_the_same_name(place):
    place.resumed()
    place.weights(lambda state: state["visual.conv1.weight"].mul_(2))
    content = torch.load(place.base / "clip.pt", weights_only=True)
    original = open(place.clip, "rb").read()
    torch.save(content, place.clip)
    place.restore = lambda: open(place.clip, "wb").write(original)
    place.set(MODEL__CLIP_WEIGHTS=place.clip)


def other_labels(place):
    place.resumed()
    place.labels()


def other_data(place):
    place.resumed()
    Image.new("RGB", (12, 24)).save(place.data / "cam1" / "0001" / "0009.png")
    place.set(DATASET__ROOT=place.data)


def damaged_state(place):
    place.resumed()
    path = place.run / "prepare_state.pth"
    path.write_bytes(path.read_bytes()[:-40])
