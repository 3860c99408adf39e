"""One epoch of train_prepare.py, part by part, on images of random bytes: a part of `make gpu`."""
import numpy as np

from benchmarks.harness import measure
from clustering.labels import make_pseudo_labels
from data.batches import Batches
from data.images import ImageBank, pick_cache
from loss.method import EpochStart
from processor.features import embed_all
from processor.train import train_step
from utils.modality import Modality

SIZES, PERSONS = {Modality.RGB: 22258, Modality.IR: 11909}, 395      # of SYSU-MM01


def random_images(n, persons, seed, size):
    """Draw (n, H, W, 3) uint8: a person is one coarse random pattern, an image is that with fine noise."""
    height, width = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (persons, height // 16, width // 16, 3), dtype=np.uint8)
    person = rng.integers(0, persons, n)
    images = rng.integers(0, 56, (n, height, width, 3), dtype=np.uint8)
    for start in range(0, n, 1024):
        part = slice(start, start + 1024)
        images[part] += coarse[person[part]].repeat(16, axis=1).repeat(16, axis=2)
    return images


def open_banks(share, device, size):
    """Hold random images as a run does: Modality -> `ImageBank`.

    Args: share: of SYSU-MM01's images and persons; size: (height, width).
    """
    counts = {m: int(n * share) for m, n in SIZES.items()}
    cache = pick_cache("auto", sum(counts.values()) * size[0] * size[1] * 3, device)
    return {m: ImageBank(random_images(n, max(int(PERSONS * share), 4), seed, size), device, cache=cache)
            for seed, (m, n) in enumerate(counts.items())}


def timed(function):
    """Call a function once: seconds until a GPU has done it, and what it returned."""
    found = []
    return measure(lambda: found.append(function()), repeats=1, warmup=0), found[0]


def run_epoch(state, banks, epoch):
    """Run an epoch as `processor.train.train` does: {part: seconds}, and its number of steps."""
    s, seconds = state.settings, {}
    method, cameras = s.method(**s.of_method), {m: bank.cameras for m, bank in banks.items()}
    seconds["embedding all images"], features = timed(lambda: embed_all(state.model, banks, method, s))
    seconds["clustering both modalities"], labels = timed(lambda: {
        m: make_pseudo_labels(features["feature"][m], m, s.cluster) for m in Modality})
    seconds["start of the method"], labels = timed(lambda: method.start(EpochStart(features, labels, cameras), epoch))
    batches = Batches(banks, labels, s, epoch, method.views)

    def train():
        state.model.train()
        for batch in batches:
            train_step(state.model, state.optimizer, method, batch, None, s.precision)

    seconds["training"], _ = timed(train)
    return seconds, len(batches)
