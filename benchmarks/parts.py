"""The parts of `python -m benchmarks.gpu`: each measures one piece of the work at the sizes given and returns its rows.

A part takes a `Bench`. The first parts are worth most.
"""
import copy
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet

from clustering.labels import make_pseudo_labels
from clustering.quality import cluster_quality
from configs.defaults import load_config
from data.augment import apply, draw
from data.batches import Batch, Batches
from data.images import ImageBank, pick_cache
from loss.links import hungarian
from loss.method import EpochStart
from model.batch_norm import folded
from model.cclnet import CCLNet
from model.replay import ReplayedNetwork
from model.towers.clip_resnet import ClipResNet
from processor.features import embed_all
from processor.setup import train_settings
from processor.train import TrainState, train_step
from utils.errors import is_out_of_memory
from utils.modality import Modality
from utils.runtime import autocast, compile_parts, gpu_rounding

PRECISIONS = {"cuda": ("released", "fp32", "tf32", "bf16"), "cpu": ("released", "bf16")}
EPOCHS = 240                            # of both scripts
IMAGES, PERSONS = {Modality.RGB: 22258, Modality.IR: 11909}, 395        # of SYSU-MM01
CLUSTERS = 500                          # of each modality, in a training step by itself
LOOKS, NOISE = 24, 0.8      # directions in which persons and images differ, by 1 and by NOISE in each


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    what: str
    seconds: float | None = None
    note: str = ""
    host: float | None = None           # share of the time in which the host launches kernels


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


RN50, KNOWN = ((3, 4, 6, 3), 64, 288, 144), {Modality.RGB: 600, Modality.IR: 450}
FULL = Sizes(RN50, 64, (64, 256, 1024), IMAGES, 1.0, KNOWN, 10)
ON_CPU = Sizes(RN50, 4, (4,), IMAGES, 0.004, KNOWN, 3)
SMALL = Sizes(((1, 1, 1, 1), 16, 64, 32), 8, (8,), {Modality.RGB: 300, Modality.IR: 200}, 0.004,
              {Modality.RGB: 12, Modality.IR: 9}, 1)


def resnet(layers, channels, height, width):
    """Build a `CCLNet` of CLIP's ResNet with random weights."""
    visual = ModifiedResNet(list(layers), output_dim=16 * channels, heads=channels // 2, image_size=224, width=channels)
    return CCLNet(ClipResNet(visual, height, width))


class Bench:
    """What the parts share. Args: device: torch.device; sizes: `Sizes`."""

    def __init__(self, device, sizes):
        self.device, self.sizes, self.precisions = device, sizes, PRECISIONS[device.type]
        self.settings = self.settings_of("released")
        torch.manual_seed(0)
        self.model = resnet(*sizes.tower)

    def settings_of(self, precision):
        """Return the released recipe's `train_settings` in a precision; the modalities meet from epoch 1 on."""
        return train_settings(load_config(None, ["PRECISION", precision, "METHOD.CROSS_EPOCH", "1",
                                                 "SAMPLER.INSTANCES", str(self.sizes.batch // 4)]), "prepare")

    def copied(self):
        """Copy the model to the device."""
        return copy.deepcopy(self.model).to(self.device, memory_format=torch.channels_last)

    def random_images(self, size):
        """Draw images (size, 3, H, W) for the model, on the device."""
        images = torch.randn(size, 3, *self.sizes.tower[2:], device=self.device)
        return images.to(memory_format=torch.channels_last)

    def row(self, what, function, images=0):
        """Time a call: the median seconds, the share that the host needs to launch it, and images a second."""
        self.reset_peak()
        self.timed(function)
        self.timed(function)
        seconds = statistics.median(self.timed(function)[0] for _ in range(self.sizes.repeats))
        host = (min(self.launching(function) for _ in range(self.sizes.repeats)) / seconds
                if self.device.type == "cuda" else None)
        return Row(what, seconds, ", ".join(filter(None, [
            self.peak_memory(), f"{images / seconds:.4g} images/s" * (images > 0)])), host)

    def timed(self, function):
        """Call a function once: seconds until the device has done it, and what it returned."""
        self.synchronize()
        started = time.perf_counter()
        found = function()
        self.synchronize()
        return time.perf_counter() - started, found

    def launching(self, function):
        """Measure the seconds in which the host gives a call to the GPU, which must not wait for a full queue."""
        self.synchronize()
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    def synchronize(self):
        """Wait until a GPU has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self):
        """Forget the peak of a GPU's memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self):
        """Write the peak of a GPU's memory since `reset_peak`, for a note."""
        return f"peak {torch.cuda.max_memory_allocated(self.device) / 1e9:.1f} GB" * (self.device.type == "cuda")


def started(settings, prototypes, epoch):
    """Start an epoch of the method of `train_settings`, with one image in each cluster.

    Args: prototypes: Modality -> (K, D) of unit length; epoch: from METHOD.CROSS_EPOCH on the modalities meet.
    """
    method = settings.method(**settings.of_method)
    labels = {m: np.arange(len(rows)) for m, rows in prototypes.items()}
    method.start(EpochStart({"feature": prototypes}, labels, {m: np.zeros_like(y) for m, y in labels.items()}), epoch)
    return method


def training(bench, precision, compiled=False, replayed=False):
    """Time a training step without swapping: `Row`. Args: compiled: by torch.compile; replayed: as CUDA graphs."""
    settings, size, model = bench.settings_of(precision), bench.sizes.batch, bench.copied().train()
    if compiled:
        compile_parts(model.tower, bench.device)
    optimizer = TrainState(model, settings).optimizer
    method = started(settings, {m: F.normalize(torch.randn(CLUSTERS, model.feature_dim, device=bench.device), dim=1)
                                for m in Modality}, epoch=0)
    rows = {m: np.arange(size) for m in Modality}
    batch = Batch({m: bench.random_images(size) for m in Modality},
                  {m: rows[m] % settings.clusters_per_batch for m in Modality}, rows, rows)
    network = ReplayedNetwork(model, ("feature",)) if replayed else model
    return bench.row(f"training step 2 x {size}, {precision}{', compiled' * compiled}{', CUDA graphs' * replayed}",
                     lambda: train_step(network, optimizer, method, batch, None, precision), 2 * size)


def steps(bench):
    """Time the training step in every precision, on a GPU in the last one also with CUDA graphs."""
    rows = [training(bench, precision) for precision in bench.precisions]
    return [*rows, training(bench, "bf16", replayed=True)] if bench.device.type == "cuda" else rows


def compiled_steps(bench):
    """Time the training step in bf16 with a compiled tower, alone and with its passes as CUDA graphs."""
    return [training(bench, "bf16", compiled=True, replayed=replayed) for replayed in (False, True)]


def embeddings(bench):
    """Time the embedding in every precision and in several batch sizes, as `processor.features.embed` does it."""
    rows = []
    for precision in bench.precisions:
        for size in bench.sizes.embedded:
            model, images = folded(bench.copied().eval()), bench.random_images(size)

            def run(model=model, images=images, precision=precision):
                with torch.inference_mode(), gpu_rounding(precision), autocast(precision, bench.device):
                    return model.encode(images, Modality.RGB, ("feature",))

            what = f"embedding, batches of {size}, {precision}"
            try:
                rows.append(bench.row(what, run, size))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                rows.append(Row(what, note="does not fit into the memory"))
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
    """Run an epoch of train_prepare.py with swapping on synthetic images, in bf16 and in the released precision."""
    size, share = bench.sizes.tower[2:], bench.sizes.share
    counts, persons = {m: int(n * share) for m, n in IMAGES.items()}, max(int(PERSONS * share), 4)
    cache = pick_cache("auto", sum(counts.values()) * size[0] * size[1] * 3, bench.device)
    banks = {m: ImageBank(random_images(n, persons, seed, size), bench.device, cache=cache)
             for seed, (m, n) in enumerate(counts.items())}
    kinds = [("bf16", True), ("bf16", False), ("released", False)] if bench.device.type == "cuda" else [
        ("released", False)]
    return [row for kind in kinds for row in whole_epoch(bench, banks, *kind)]


def whole_epoch(bench, banks, precision, replayed):
    """Run an epoch as `processor.train.train` does: its rows.

    Args: banks: Modality -> `ImageBank`; replayed: passes as CUDA graphs, which are captured before.
    """
    state = TrainState(bench.copied(), bench.settings_of(precision))
    s, seconds, cameras = state.settings, {}, {m: bank.cameras for m, bank in banks.items()}
    method = s.method(**s.of_method)
    bench.reset_peak()
    seconds["embedding all images"], features = bench.timed(lambda: embed_all(state.model, banks, method, s))
    seconds["clustering both modalities"], labels = bench.timed(lambda: {
        m: make_pseudo_labels(features["feature"][m], m, s.cluster) for m in Modality})
    seconds["start of the method"], labels = bench.timed(lambda: method.start(
        EpochStart(features, labels, cameras), 1))
    batches = Batches(banks, labels, s, 1, method.views)
    network = ReplayedNetwork(state.model, ("feature",)) if replayed else state.model
    if replayed:
        train_step(network.train(), state.optimizer, method, batches[0], None, s.precision)

    def train():
        state.model.train()
        for batch in batches:
            train_step(network, state.optimizer, method, batch, None, s.precision)

    seconds["training"], _ = bench.timed(train)
    whole = sum(seconds.values())
    note = f"{len(batches)} steps; {EPOCHS} epochs: {whole * EPOCHS / 3600:.3g} hours; {bench.peak_memory()}"
    return [Row(f"whole epoch, {precision}{', CUDA graphs' * replayed}, {sum(map(len, banks.values()))} images", whole,
                note),
            *(Row(f"of it {name}", value, f"{value / whole:.1%} of it") for name, value in seconds.items())]


def clustering(bench):
    """Time the pseudo labels of both modalities, a hard case: persons are merged and split, and a fifth is in none.

    A person has 40 to 55 images, whose features lie in LOOKS directions.
    """
    rows, rng = [], np.random.default_rng(0)
    for m, n in bench.sizes.images.items():
        person = rng.permutation(np.repeat(np.arange(n // 40 + 1), rng.integers(40, 56, n // 40 + 1))[:n])
        look = torch.from_numpy(rng.standard_normal((n // 40 + 1, LOOKS), dtype=np.float32)[person] + NOISE
                                * rng.standard_normal((n, LOOKS), dtype=np.float32)
                                + rng.standard_normal(LOOKS, dtype=np.float32))
        basis = torch.from_numpy(rng.standard_normal((LOOKS, bench.model.feature_dim), dtype=np.float32))
        x = F.normalize(look @ basis, dim=1).to(bench.device)
        make_pseudo_labels(x[:500], m, bench.settings.cluster)      # warm
        seconds, labels = bench.timed(lambda x=x, m=m: make_pseudo_labels(x, m, bench.settings.cluster))
        found = cluster_quality(labels, person)
        rows.append(Row(f"clustering {m.value}, {n} x {x.shape[1]}", seconds,
                        f"{labels.max() + 1} clusters of {len(np.unique(person))} persons, "
                        f"{found['outlier_share']:.0%} outliers, ARI {found['ari']:.3f}"))
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
    k, dim, size = bench.sizes.prototypes, bench.model.feature_dim, bench.sizes.batch
    persons = torch.randn(max(k.values()), dim)
    start = {m: F.normalize(persons[:n] + torch.randn(n, dim), dim=1).to(bench.device) for m, n in k.items()}
    features = {m: F.normalize(torch.randn(size, dim), dim=1).to(bench.device) for m in k}
    batch = Batch({}, {m: np.arange(size) % 4 for m in k}, {}, {})
    rows, what = [], f"memories {' x '.join(map(str, k.values()))}, "
    for swap in (False, True):
        method = started(bench.settings, start, epoch=int(swap))

        def step(method=method):
            method.update(features, batch)
            method.prototypes()         # a swap that was put off is done

        rows.append(bench.row(what + ("with swap" if swap else "without swap"), step))
    rgb, ir = start.values()
    similarity = (rgb @ ir.T).cpu().numpy()
    return [*rows, bench.row("of it the links", lambda: hungarian(similarity))]
