"""A data set of five people in memory: six images each and modality; train and test are the same images."""
import contextlib
import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch

from configs.defaults import load_config
from data.images import ImageBank
from data.records import DataSet, ImageSet, Retrieval
from loss.method import EpochStart
from model.cclnet import CCLNet
from model.towers.registry import load_tower
from processor.evaluate import Tester
from processor.run.folder import Run
from processor.setup import prompt_settings, train_settings
from utils.distributed import ALONE, Processes
from utils.modality import Modality

HEIGHT, WIDTH, PEOPLE, EACH = 32, 16, 5, 6
IMAGES = PEOPLE * EACH
LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}      # the persons
SETTINGS = {"CLUSTER.K1": 5, "CLUSTER.K2": 2, "METHOD.CROSS_EPOCH": 3, "SAMPLER.CLUSTERS": 2, "SAMPLER.INSTANCES": 2,
            "INPUT.GREY": 0, "INPUT.PAD": 0, "INPUT.ERASE": 0, "OPTIM.WARMUP_EPOCHS": 1, "PROMPT.BATCH_SIZE": 8}


class TinyData(DataSet):
    """Every image of one modality is a query, every one of the other the gallery; both directions."""

    modes = ("v2t", "t2v")

    def _retrieval(self, mode, trials, protocol):
        query = Modality.RGB if mode == "v2t" else Modality.IR
        return Retrieval(f"tiny {mode}", mode, "regdb", query, np.arange(IMAGES), (np.arange(IMAGES),), (0,))


def tiny_data(order=None):
    """The data set; order: (30,) puts its training identities in another order."""
    persons = np.repeat(np.arange(PEOPLE), EACH)
    sets = {m: ImageSet.from_rows(m, [(f"{m.value}/{i}.png", p, 1) for i, p in enumerate(persons)]) for m in Modality}
    order = np.arange(IMAGES) if order is None else order
    train = {m: dataclasses.replace(images, persons=images.persons[order]) for m, images in sets.items()}
    return TinyData("tiny", Path("."), train, sets)


def tiny_banks():
    """Modality -> `ImageBank`: people of clearly different patterns, noisy images."""
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (PEOPLE, HEIGHT // 4, WIDTH // 4, 3)).repeat(4, 1).repeat(4, 2)
    images = np.clip(looks.repeat(EACH, 0) + rng.normal(0, 8, (IMAGES, HEIGHT, WIDTH, 3)), 0, 255)
    return {m: ImageBank(images.astype(np.uint8)) for m in Modality}


def tiny_config(**changes):
    """Settings that suit the data; in the names of changes "__" stands for a dot."""
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_config(None, [str(word) for pair in settings.items() for word in pair])


def tiny_settings(epochs=3, restart=False, allow_collapse=True, **changes):
    """`train_settings` of a fine-tune; changes as `tiny_config`."""
    return train_settings(tiny_config(FINETUNE__EPOCHS=epochs, FINETUNE__RESTART_AT_CROSS=restart,
                                      PREPARE__ALLOW_COLLAPSE=allow_collapse, **changes), "finetune")


def tiny_prompt_settings(**changes):
    """`prompt_settings`; changes as `tiny_config`."""
    return prompt_settings(tiny_config(**changes))


def tiny_model(clip_file):
    """A new network of a CLIP's file, for images of this size."""
    return CCLNet(load_tower(clip_file, height=HEIGHT, width=WIDTH))


def outputs(model, size=None):
    """All that a model says in evaluation mode of four random images of a size, its own if None, in either modality."""
    size = size or (model.tower.height, model.tower.width)
    images = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        said = [model.eval().encode_image(images, m) for m in Modality]
    return torch.cat([torch.cat([rows for rows in of if rows is not None], dim=1) for of in said])


def tiny_tester(banks, every=100, order=None):
    """A `Tester` on the tiny data; order: as `tiny_data`."""
    data = tiny_data(order)
    return Tester(data, banks, data.retrieval(), every, 64, "fp32")


def one_of(size, rank=0):
    """A process of several that talks to nobody."""
    processes = Processes(rank)
    processes.size, processes.in_turn = size, contextlib.nullcontext
    processes.once, processes.gather = (lambda function: function()), (lambda rows, *_: rows)
    return processes


def epoch_of(rows):
    """An `EpochStart` with an image per cluster, so that memories start from its rows. Args: Modality -> (K, D)."""
    features = {"feature": rows, "depths": {m: of[:, None] for m, of in rows.items()}}
    return EpochStart(features, {m: np.arange(len(of)) for m, of in rows.items()},
                      {m: np.zeros(len(of), np.int64) for m, of in rows.items()})


def linked_by(method, links, **settings):
    """A method whose epochs have the links given. Args: method: a class; links: `Links`."""
    class Linked(method):
        def link(self, start):
            return links
    return Linked(**settings)


class Silent(Processes):
    """The only process, which writes nothing."""

    def __init__(self):
        super().__init__()
        self.writes = False


class TinyRun(Run):
    """A run that writes to a folder. Args: content: of a state file to resume from."""

    def __init__(self, folder, content=None, processes=ALONE):
        facts = {"manifest": {"train": {}, "test": {}}, "config": {}}
        super().__init__("tiny", folder, logging.getLogger("tiny"), facts, content, processes)

    def saved(self):
        """The content of the state file."""
        return torch.load(self.state_path)

    def rows(self, stage):
        """The lines of metrics.jsonl of a stage."""
        return [row for row in self.history if row["stage"] == stage]
