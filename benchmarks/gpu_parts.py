"""The parts of `make gpu`: each measures one piece of the work at the sizes given and returns its rows.

A part takes a `Bench` and may leave in it what later parts read. The first parts are worth most.
"""
import copy
import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import bench_clustering, bench_memory
from benchmarks.bench_train_step import embedding, resnet, training
from benchmarks.harness import Row, measure, timed
from clustering.labels import make_pseudo_labels
from configs.defaults import load_config
from data.augment import apply, draw
from data.batches import Batches
from data.images import ImageBank, pick_cache
from loss.links import hungarian
from loss.method import EpochStart
from model.replay import ReplayedNetwork
from processor.features import embed_all
from processor.setup import train_settings
from processor.train import TrainState, train_step
from utils.errors import is_out_of_memory
from utils.modality import Modality

PRECISIONS = ("released", "fp32", "tf32", "bf16")
EPOCHS = 240                            # of both scripts
COMPARED = ("released", "bf16")         # precisions that are embedded in several batch sizes
IMAGES, PERSONS = {Modality.RGB: 22258, Modality.IR: 11909}, 395        # of SYSU-MM01


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    tower: tuple            # of `resnet`: layers, channels, height, width
    batch: int              # images per modality in a training step
    embedded: tuple         # batch sizes of the embedding
    images: dict            # Modality -> training images
    share: float            # of SYSU-MM01's images in the whole epoch
    prototypes: dict        # Modality -> clusters in the memories
    repeats: int


FULL = Sizes(((3, 4, 6, 3), 64, 288, 144), 64, (64, 256, 1024), IMAGES, 1.0, bench_memory.CLUSTERS, 10)
SMALL = Sizes(((1, 1, 1, 1), 16, 64, 32), 8, (8,), {Modality.RGB: 300, Modality.IR: 200}, 0.004,
              {Modality.RGB: 12, Modality.IR: 9}, 1)


class Bench:
    """What the parts share. Args: device: torch.device; sizes: `Sizes`."""

    def __init__(self, device, sizes):
        self.device, self.sizes = device, sizes
        self.settings = self.settings_of("released")
        torch.manual_seed(0)
        self.model = resnet(*sizes.tower)

    def settings_of(self, precision):
        """Return the released recipe's `train_settings` in a precision, swapping from the first epoch on."""
        return train_settings(load_config(None, ["PRECISION", precision, "METHOD.CROSS_EPOCH", "1",
                                                 "SAMPLER.INSTANCES", str(self.sizes.batch // 4)]), "prepare")

    def row(self, what, function):
        """Time a call, and the share of it that the host needs to launch it."""
        reset_peak(self.device)
        seconds = measure(function, self.sizes.repeats, 2)
        return Row(what, seconds, note=peak_memory(self.device), host=launching(function, self.sizes.repeats) / seconds
                   if self.device.type == "cuda" else None)


def launching(function, repeats):
    """Measure the least seconds in which the host gives a call to the GPU, which must not wait for a full queue."""
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return min(found)


def reset_peak(device):
    """Forget the peak of the device's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """Write the peak of the device's memory since `reset_peak`, for a note."""
    return f"peak {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""


def steps(bench):
    """Time the training step in every precision; in the last also with CUDA graphs and with cuDNN's own search."""
    size, what = bench.sizes.batch, f"training step 2 x {bench.sizes.batch}, "
    rows = [bench.row(what + precision, training(bench.model, bench.device, precision, size))
            for precision in PRECISIONS]
    for replayed, searched in ((True, False), (True, True), (False, True)) if bench.device.type == "cuda" else ():
        torch.backends.cudnn.benchmark = searched
        rows.append(bench.row(what + PRECISIONS[-1] + ", CUDA graphs" * replayed + ", cudnn.benchmark" * searched,
                              training(bench.model, bench.device, PRECISIONS[-1], size, replayed=replayed)))
    torch.backends.cudnn.benchmark = False
    return rows


def compiled_steps(bench):
    """Time the training step in bf16 with a compiled tower, alone and with its passes as CUDA graphs."""
    rows, size = [], bench.sizes.batch
    for replayed in (False, True):
        step = training(bench.model, bench.device, "bf16", size, compiled=True, replayed=replayed)
        first = measure(step, repeats=1, warmup=0)
        rows.append(bench.row(f"training step 2 x {size}, bf16, compiled" + ", CUDA graphs" * replayed, step))
        rows[-1].note += f"; the first step took {first:.0f} s"
    return rows


def embeddings(bench):
    """Time the embedding in every precision, and in several batch sizes."""
    rows, sizes = [], bench.sizes.embedded
    for precision in PRECISIONS:
        for size in sizes if precision in COMPARED else sizes[len(sizes) // 2:][:1]:
            what = f"embedding, batches of {size}, {precision}"
            try:
                row = bench.row(what, embedding(bench.model, bench.device, precision, size))
                row.note += f", {size / row.ours:.4g} images/s"
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                row = Row(what, note="does not fit into the memory")
            rows.append(row)
    return rows


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


def whole_epochs(bench):
    """Run an epoch of train_prepare.py with swapping on synthetic images in the precisions that are compared."""
    size, share = bench.sizes.tower[2:], bench.sizes.share
    counts, persons = {m: int(n * share) for m, n in IMAGES.items()}, max(int(PERSONS * share), 4)
    cache = pick_cache("auto", sum(counts.values()) * size[0] * size[1] * 3, bench.device)
    banks = {m: ImageBank(random_images(n, persons, seed, size), bench.device, cache=cache)
             for seed, (m, n) in enumerate(counts.items())}
    kinds = [(precision, False) for precision in COMPARED if precision in PRECISIONS]
    if bench.device.type == "cuda":
        kinds.append((COMPARED[-1], True))
    return [row for kind in reversed(kinds) for row in whole_epoch(bench, banks, *kind)]


def whole_epoch(bench, banks, precision, replayed):
    """Run an epoch as `processor.train.train` does: its rows.

    Args: banks: Modality -> `ImageBank`; replayed: passes as CUDA graphs, which are captured before.
    """
    state = TrainState(copy.deepcopy(bench.model).to(bench.device, memory_format=torch.channels_last),
                       bench.settings_of(precision))
    s, seconds, cameras = state.settings, {}, {m: bank.cameras for m, bank in banks.items()}
    method = s.method(**s.of_method)
    reset_peak(bench.device)
    seconds["embedding all images"], features = timed(lambda: embed_all(state.model, banks, method, s))
    seconds["clustering both modalities"], labels = timed(lambda: {
        m: make_pseudo_labels(features["feature"][m], m, s.cluster) for m in Modality})
    seconds["start of the method"], labels = timed(lambda: method.start(EpochStart(features, labels, cameras), 1))
    batches = Batches(banks, labels, s, 1, method.views)
    network = ReplayedNetwork(state.model, ("feature",)) if replayed else state.model
    if replayed:
        train_step(network.train(), state.optimizer, method, batches[0], None, s.precision)

    def train():
        state.model.train()
        for batch in batches:
            train_step(network, state.optimizer, method, batch, None, s.precision)

    seconds["training"], _ = timed(train)
    whole = sum(seconds.values())
    return [Row(f"whole epoch, {precision}{', CUDA graphs' * replayed}, {sum(map(len, banks.values()))} images", whole,
                note=f"{len(batches)} steps; {EPOCHS} epochs: {whole * EPOCHS / 3600:.3g} hours; "
                     + peak_memory(bench.device)),
            *(Row(f"of it {name}", value, note=f"{value / whole:.1%} of it") for name, value in seconds.items())]


def clustering(bench):
    """Time the pseudo labels of both modalities, hard case."""
    rows = []
    for m, n in bench.sizes.images.items():
        x, persons = bench_clustering.draw(n, bench_clustering.CASES[bench_clustering.HARD])
        x = torch.from_numpy(x).to(bench.device)
        make_pseudo_labels(x, m, bench.settings.cluster)      # warm
        seconds, labels = timed(lambda x=x, m=m: make_pseudo_labels(x, m, bench.settings.cluster))
        rows.append(Row(f"clustering {m.value}, {n} x {x.shape[1]}", seconds,
                        note=bench_clustering.quality(labels, persons)))
    return rows


def augmentation(bench):
    """Time the images of a training step: gathered, sent and augmented, from both places where they may be held."""
    rows, size = [], bench.sizes.batch
    images = np.random.default_rng(0).integers(0, 256, (256, *bench.sizes.tower[2:], 3), dtype=np.uint8)
    for cache in ("device", "mmap"):
        bank, rng = ImageBank(images, bench.device, cache=cache), np.random.default_rng(1)

        def batch(bank=bank, rng=rng):
            for policy in bench.settings.augmentation.values():
                found = bank.batch(rng.integers(0, 256, size))
                apply(found, draw(policy, size, found.shape[2:], rng))

        rows.append(bench.row(f"augmented images of a step, from {cache}", batch))
    return rows


def memories(bench):
    """Time a step of the memories, and its links, which the host finds beside the next forward pass."""
    k, dim = bench.sizes.prototypes, bench.model.feature_dim
    rows = [bench.row(f"memories {' x '.join(map(str, k.values()))}, {'with' if swap else 'without'} swap",
                      bench_memory.steps(bench.device, k, dim, swap)[0]) for swap in (False, True)]
    rgb, ir = bench_memory.draw(k, dim).values()
    similarity = (rgb @ ir.T).numpy()
    return [*rows, Row("of it the links", measure(lambda: hungarian(similarity)))]
