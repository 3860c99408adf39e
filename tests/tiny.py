"""A data set of five people in memory: six images each and modality; train and test are the same images."""
import dataclasses
from pathlib import Path

import numpy as np

from data.images import ImageBank
from data.records import DataSet, ImageSet, Retrieval
from utils.modality import Modality

HEIGHT, WIDTH, PEOPLE, EACH = 32, 16, 5, 6
IMAGES = PEOPLE * EACH


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
