"""The parts of `make gpu`: each measures one piece of the work at the sizes given and returns its rows.

A part takes a `Bench` and may leave in it what later parts read. The first parts are worth most.
"""
import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from scipy.optimize import linear_sum_assignment
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_clustering, bench_memory, epoch
from benchmarks.bench_train_step import embedding, resnet, training
from benchmarks.harness import Row, bandwidth, measure
from clustering.labels import make_pseudo_labels
from clustering.neighbours import k_nearest, k_nearest_by_torch
from configs.defaults import load_config
from data.augment import apply, draw
from data.images import ImageBank
from model.clip import TextTower
from processor.metrics import rank_metrics
from processor.prompt import prompt_step
from processor.run.state import PromptState, TrainState
from processor.setup import prompt_settings, train_settings
from utils.errors import is_out_of_memory
from utils.modality import Modality
from utils.runtime import gpu_rounding

PRECISIONS = ("released", "fp32", "tf32", "bf16")
# PRECISION -> what its peak is measured with: nearly all of the tower's work is in convolutions.
PEAK_OF = {"released": ("tf32", torch.float32), "fp32": ("fp32", torch.float32), "tf32": ("tf32", torch.float32),
           "bf16": ("fp32", torch.bfloat16)}
COMPARED = ("released", "bf16")         # precisions that are embedded in several batch sizes


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    tower: tuple            # of `resnet`: layers, channels, height, width
    batch: int              # images per modality in a training step
    embedded: tuple         # batch sizes of the embedding
    images: dict            # Modality -> training images
    share: float            # of SYSU-MM01's images in the whole epoch
    prototypes: dict        # Modality -> clusters in the memories
    queries: int            # of a test
    side: int               # of the matrices whose product gives the peak
    repeats: int


FULL = Sizes(((3, 4, 6, 3), 64, 288, 144), 64, (64, 256, 1024), epoch.SIZES, 1.0, bench_memory.CLUSTERS, 3803, 8192, 10)
SMALL = Sizes(((1, 1, 1, 1), 16, 64, 32), 8, (8,), {Modality.RGB: 300, Modality.IR: 200}, 0.004,
              {Modality.RGB: 12, Modality.IR: 9}, 50, 128, 1)


class Bench:
    """What the parts share. Args: device: torch.device; sizes: `Sizes`."""

    def __init__(self, device, sizes):
        self.device, self.sizes = device, sizes
        self.settings = self.settings_of("released")
        torch.manual_seed(0)
        self.model = resnet(*sizes.tower)
        self.peaks = {}             # PRECISION -> FLOP/s that the device reaches
        self.steps = max(sizes.images.values()) // sizes.batch + 1      # in an epoch
        self.flops = {}             # PRECISION -> floating-point operations of a training step

    def settings_of(self, precision):
        """Return the released recipe's `TrainSettings` in a precision, swapping from the first epoch on."""
        return train_settings(load_config(None, ["PRECISION", precision, "METHOD.CROSS_EPOCH", "1",
                                                 "SAMPLER.INSTANCES", str(self.sizes.batch // 4)]), "prepare")

    def row(self, what, function, per_epoch=0, precision="", flops=None):
        """Time a call and tell its share of the peak and of the host. Args: flops: of it, counted here if None."""
        reset_peak(self.device)
        flops, repeats = flops or count(function), self.sizes.repeats
        seconds, peak = measure(function, repeats, 2), self.peaks.get(precision or "fp32")
        return Row(what, seconds, note=f"{flops / seconds / 1e12:.3g} TFLOP/s{peak_memory(self.device)}",
                   per_epoch=per_epoch, precision=precision, arithmetic=peak and flops / peak / seconds,
                   host=launching(function, repeats) / seconds if self.device.type == "cuda" else None)


def count(function):
    """Count the floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


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
    return f", peak {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""


def peaks(bench):
    """Measure what the device can do: a large matrix product in every precision, a large copy."""
    side, rows = bench.sizes.side, []
    for precision, (rounding, dtype) in PEAK_OF.items():
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        with gpu_rounding(rounding):
            seconds = measure(lambda a=a, b=b: a @ b, warmup=3)
        bench.peaks[precision] = 2 * side**3 / seconds
        rows.append(Row(f"matrix product of {side}, {precision}", seconds,
                        note=f"{bench.peaks[precision] / 1e12:.4g} TFLOP/s"))
    rate = bandwidth(bench.device)
    return [*rows, Row("copy of 1 GB", 2e9 / rate, note=f"{rate / 1e12:.4g} TB/s")]


def steps(bench):
    """Time the training step in every precision, and contiguous instead of channels-last."""
    rows, size = [], bench.sizes.batch
    for precision in PRECISIONS:
        step = training(bench.model, bench.device, precision, size)
        flops = bench.flops[precision] = count(step)
        rows.append(bench.row(f"training step 2 x {size}, {precision}", step, bench.steps, precision, flops))
    step = training(bench.model, bench.device, precision, size, torch.contiguous_format)
    return [*rows, bench.row(f"training step 2 x {size}, {precision}, contiguous", step, 0, precision)]


def compiled_step(bench, precision):
    """Time the training step with a compiled tower."""
    size = bench.sizes.batch
    flops = bench.flops.get(precision) or count(training(bench.model, bench.device, precision, size))
    step = training(bench.model, bench.device, precision, size, compiled=True)
    first = measure(step, repeats=1, warmup=0)
    row = bench.row(f"training step 2 x {size}, {precision}, compiled", step, 0, precision, flops)
    row.note += f"; the first step took {first:.0f} s"
    return [row]


def embeddings(bench):
    """Time the embedding in every precision, and in several batch sizes."""
    rows, images, sizes = [], sum(bench.sizes.images.values()), bench.sizes.embedded
    for precision in PRECISIONS:
        for size in sizes if precision in COMPARED else sizes[len(sizes) // 2:][:1]:
            what = f"embedding, batches of {size}, {precision}"
            try:
                row = bench.row(what, embedding(bench.model, bench.device, precision, size), images / size, precision)
                row.note += f", {size / row.ours:.4g} images/s"
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                row = Row(what, note="does not fit into the memory")
            rows.append(row)
    return rows


def whole_epoch(bench):
    """Run one epoch of train_prepare.py with swapping on synthetic images, on a GPU in bf16."""
    precision = "bf16" if bench.device.type == "cuda" else "released"
    banks = epoch.open_banks(bench.sizes.share, bench.device, bench.sizes.tower[2:])
    model = copy.deepcopy(bench.model).to(bench.device, memory_format=torch.channels_last)
    reset_peak(bench.device)
    seconds, steps = epoch.run_epoch(TrainState(model, bench.settings_of(precision)), banks, 1)
    whole = sum(seconds.values())
    return [Row(f"whole epoch, {precision}, {sum(map(len, banks.values()))} images", whole,
                note=f"{steps} steps{peak_memory(bench.device)}"),
            *(Row(f"of it {name}", value, note=f"{value / whole:.1%} of it") for name, value in seconds.items())]


def clustering(bench):
    """Time the pseudo labels of both modalities, hard case, and the search for neighbours alone."""
    rows, settings = [], bench.settings.cluster
    for m, n in bench.sizes.images.items():
        x, persons = bench_clustering.draw(n, bench_clustering.CASES[bench_clustering.HARD])
        x = torch.from_numpy(x).to(bench.device)
        make_pseudo_labels(x, m, settings)      # warm
        seconds, labels = epoch.timed(lambda x=x, m=m: make_pseudo_labels(x, m, settings))
        rows.append(Row(f"clustering {m.value}, {n} x {x.shape[1]}", seconds, per_epoch=1,
                        note=bench_clustering.quality(labels, persons)))
        for name, search in (("as installed", k_nearest), ("torch", k_nearest_by_torch)):
            rows.append(Row(f"of it the search, {name}", measure(lambda x=x, f=search: f(x, settings.k1), 1)))
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

        rows.append(bench.row(f"augmented images of a step, from {cache}", batch,
                              bench.steps if cache == "device" else 0))
    return rows


def memories(bench):
    """Time a step of the memories, and its matching on the host."""
    rows, k, dim = [], bench.sizes.prototypes, bench.model.feature_dim
    for swap, name in ((False, "without"), (True, "with")):
        step, *_ = bench_memory.steps(bench.device, k, dim, swap)
        rows.append(bench.row(f"memories {' x '.join(map(str, k.values()))}, {name} swap", step, bench.steps * swap))
    rgb, ir = bench_memory.draw(k, dim).values()
    similarity = (rgb @ ir.T).numpy()
    return [*rows, Row("of it the matching, on the host beside the next forward pass", measure(
        lambda: linear_sum_assignment(similarity, maximize=True)))]


def metrics(bench):
    """Time the metrics of ten trials of SYSU-MM01's all-search, on the host."""
    rng, queries, gallery_ids = np.random.default_rng(0), bench.sizes.queries, np.arange(301) % 96
    query_ids = rng.integers(0, 96, queries)
    distance = rng.random((queries, 301), dtype=np.float32) - np.float32(0.3) * (query_ids[:, None] == gallery_ids)
    cameras = rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], 301)
    seconds = measure(lambda: [rank_metrics(distance, query_ids, gallery_ids, *cameras, "sysu") for _ in range(10)], 1)
    return [Row(f"metrics, ten trials of {queries} x 301", seconds, per_epoch=1 / load_config().TEST.EVERY)]


def prompts(bench):
    """Time a step of the prompt stage: texts of the clusters in a batch, forward and backward."""
    sizes, settings = bench.sizes, prompt_settings(load_config())
    width = 16 * sizes.tower[1]
    torch.manual_seed(0)
    text_sizes = CLIPTextCfg() if sizes is FULL else CLIPTextCfg(width=64, heads=2, layers=1)
    clip = CLIP(width, CLIPVisionCfg(layers=(1, 1, 1, 1), width=32, image_size=64), text_sizes)
    text, rng = TextTower(clip).to(bench.device), np.random.default_rng(0)
    labels = {m: rng.integers(0, sizes.prototypes[m], n) for m, n in sizes.images.items()}
    state, pairs = PromptState(text, labels, settings), 2 * sizes.batch
    projections = {m: torch.randn(pairs, width, device=bench.device) for m in Modality}
    row = bench.row(f"prompt step, {pairs} pairs", lambda: prompt_step(
        text, state.prompts, state.optimizer, projections, {m: labels[m][:pairs] for m in Modality}))
    count = settings.epochs * -(-max(sizes.images.values()) // pairs)
    row.note += f"; {count * row.ours / 60:.3g} minutes for the {settings.epochs} epochs of the prompt stage"
    return [row]
