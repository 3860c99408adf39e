"""The parts of `make gpu`: each measures one piece of the work at the sizes given and returns its rows.

A part takes a `Bench` and may leave in it what later parts read. The first parts are worth most.
"""
import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from scipy.optimize import linear_sum_assignment

from benchmarks import bench_clustering, bench_epoch, bench_memory, roofline
from benchmarks.bench_train_step import embedding, training
from benchmarks.harness import measure, start_method
from clustering.labels import make_pseudo_labels
from clustering.neighbours import k_nearest, k_nearest_by_torch
from configs.defaults import load_config
from data.augment import apply, draw
from data.batches import Batch
from data.images import ImageBank
from model.cclnet import CCLNet
from model.clip import TextTower
from model.towers.clip_resnet import ClipResNet
from processor.metrics import rank_metrics
from processor.prompt import prompt_step
from processor.run.state import PromptState, TrainState
from processor.setup import prompt_settings, train_settings
from utils.errors import is_out_of_memory
from utils.modality import Modality

PRECISIONS = ("released", "fp32", "tf32", "bf16")
EPOCHS = 240                # of both scripts


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    layers: tuple           # of the ModifiedResNet
    channels: int           # its width
    height: int
    width: int
    batch: int              # images per modality in a training step
    embedded: tuple         # batch sizes of the embedding
    images: dict            # Modality -> training images
    share: float            # of SYSU-MM01's images in the whole epoch
    prototypes: dict        # Modality -> clusters in the memories
    queries: int            # of a test
    side: int               # of the matrices whose product gives the peak
    copied: int             # bytes of the copy that gives the bandwidth
    repeats: int


FULL = Sizes((3, 4, 6, 3), 64, 288, 144, 64, (64, 256, 1024), bench_epoch.SIZES, 1.0, bench_memory.CLUSTERS, 3803, 8192,
             1 << 30, 10)
SMALL = Sizes((1, 1, 1, 1), 16, 64, 32, 8, (8,), {Modality.RGB: 300, Modality.IR: 200}, 0.004,
              {Modality.RGB: 12, Modality.IR: 9}, 50, 128, 1 << 20, 1)


@dataclass
class Row:
    """One line of the table: seconds of one call, and how often an epoch makes it."""

    what: str
    seconds: float
    per_epoch: float = 0.0          # calls in an epoch; 0: it is no part of one
    precision: str = ""             # "" where it is the same in all
    shares: dict = field(default_factory=dict)      # of `roofline.shares`
    note: str = ""


def build_model(sizes):
    """Build a `CCLNet` of these sizes with random weights: the arithmetic is the same."""
    visual = ModifiedResNet(list(sizes.layers), output_dim=16 * sizes.channels, heads=sizes.channels // 2,
                            image_size=224, width=sizes.channels)
    return CCLNet(ClipResNet(visual, sizes.height, sizes.width))


class Bench:
    """What the parts share. Args: device: torch.device; sizes: `Sizes`."""

    def __init__(self, device, sizes):
        self.device, self.sizes = device, sizes
        self.settings = self.settings_of("released")
        torch.manual_seed(0)
        self.model = build_model(sizes)
        self.peaks = None           # `roofline.Peaks`
        self.steps = max(sizes.images.values()) // sizes.batch + 1      # in an epoch
        self.work = {}              # precision -> `roofline.Work` of a training step

    def settings_of(self, precision):
        """Return the released recipe's `TrainSettings` in a precision, swapping from the first epoch on."""
        batch = self.sizes.batch // 4
        return train_settings(load_config(None, ["PRECISION", precision, "METHOD.CROSS_EPOCH", "1",
                                                 "SAMPLER.INSTANCES", str(batch)]), "prepare")

    def row(self, what, function, per_epoch=0, precision="", counted=None):
        """Time a call and say what bounds it. Args: counted: `roofline.Work` of it, counted here if None."""
        reset_peak(self.device)
        work = counted or roofline.count(function)
        timing = roofline.time_call(function, self.device, self.sizes.repeats)
        found = roofline.shares(timing, work, self.peaks, precision or "fp32") if self.peaks else {}
        note = f"{work.flops / timing.seconds / 1e12:.3g} TFLOP/s, {work.bytes / 1e9:.3g} GB moved{peak(self.device)}"
        return Row(what, timing.seconds, per_epoch, precision, found, note)


def reset_peak(device):
    """Forget the peak of the device's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device):
    """Write the peak of the device's memory since `reset_peak`, for a note."""
    return f", peak {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""


def peaks(bench):
    """Measure what the device can do."""
    found = bench.peaks = roofline.measure_peaks(bench.device, bench.sizes.side, bench.sizes.copied)
    rows = [Row(f"matrix product of {bench.sizes.side}, {name}", 2 * bench.sizes.side**3 / rate,
                note=f"{rate / 1e12:.4g} TFLOP/s") for name, rate in found.flops.items()]
    return [*rows, Row(f"copy of {bench.sizes.copied / 1e9:.3g} GB", 2 * bench.sizes.copied / found.bandwidth,
                       note=f"{found.bandwidth / 1e12:.4g} TB/s")]


def steps(bench):
    """Time the training step in every precision, and contiguous instead of channels-last."""
    rows = []
    for precision, channels_last in (*((name, True) for name in PRECISIONS), ("bf16", False)):
        step = training(copy.deepcopy(bench.model), bench.device, precision, bench.sizes.batch, channels_last)
        work = bench.work[precision] = roofline.count(step)
        name = f"training step 2 x {bench.sizes.batch}, {precision}" + ("" if channels_last else ", contiguous")
        rows.append(bench.row(name, step, bench.steps if channels_last else 0, precision, work))
    return rows


def compiled_step(bench, precision):
    """Time the training step with a compiled tower."""
    size = bench.sizes.batch
    work = bench.work.get(precision) or roofline.count(training(copy.deepcopy(bench.model), bench.device, precision,
                                                                size, True))
    step = training(copy.deepcopy(bench.model), bench.device, precision, size, True, compiled=True)
    first = measure(step, repeats=1, warmup=0)
    row = bench.row(f"training step 2 x {size}, {precision}, compiled", step, 0, precision, work)
    row.note += f"; the first step took {first:.0f} s; shares as if nothing were fused"
    return [row]


def embeddings(bench):
    """Time the embedding of one image in every precision and several batch sizes."""
    rows, images = [], sum(bench.sizes.images.values())
    for precision in PRECISIONS:
        middle = bench.sizes.embedded[len(bench.sizes.embedded) // 2]
        for size in bench.sizes.embedded if precision in ("released", "bf16") else (middle,):
            try:
                run = embedding(copy.deepcopy(bench.model), bench.device, precision, size, True)
                row = bench.row(f"embedding, batches of {size}, {precision}", run, images / size, precision)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                rows.append(Row(f"embedding, batches of {size}, {precision}", 0.0, note="does not fit into the memory"))
                continue
            row.note += f", {size / row.seconds:.4g} images/s"
            rows.append(row)
    return rows


def whole_epoch(bench):
    """Run one epoch of train_prepare.py with swapping on synthetic images, on a GPU in bf16."""
    precision = "bf16" if bench.device.type == "cuda" else "released"
    s, sizes = bench.settings_of(precision), bench.sizes
    banks = bench_epoch.open_banks(sizes.share, bench.device, (sizes.height, sizes.width))
    model = copy.deepcopy(bench.model).to(bench.device, memory_format=torch.channels_last)
    state = TrainState(model, s)
    reset_peak(bench.device)
    seconds, _, batches = bench_epoch.run_epoch(state, banks, 1)
    whole = Row(f"whole epoch, {precision}, {sum(map(len, banks.values()))} images", sum(seconds.values()), 0,
                precision, note=f"{len(batches)} steps{peak(bench.device)}")
    return [whole, *(Row(f"of it {name}", value, 0, precision, note=f"{value / whole.seconds:.1%} of it")
                     for name, value in seconds.items())]


def clustering(bench):
    """Time the pseudo labels of both modalities, hard case, and the search for neighbours alone."""
    rows, settings = [], bench.settings.cluster
    for m, n in bench.sizes.images.items():
        x, persons = bench_clustering.draw(n, bench_clustering.CASES[bench_clustering.HARD])
        x = torch.from_numpy(x).to(bench.device)
        labels = make_pseudo_labels(x, m, settings)
        rows.append(Row(f"clustering {m.value}, {n} x {x.shape[1]}", measure(
            lambda v=x, m=m: make_pseudo_labels(v, m, settings), 1, 0), 1.0,
            note=bench_clustering.quality(labels, persons)))
        for name, search in (("as installed", k_nearest), ("torch", k_nearest_by_torch)):
            rows.append(Row(f"of it the search, {name}", measure(lambda v=x, f=search: f(v, settings.k1), 1, 1)))
    return rows


def augmentation(bench):
    """Time the images of a training step: gathered, sent and augmented, from both places where they may be held."""
    rows, sizes = [], bench.sizes
    images = np.random.default_rng(0).integers(0, 256, (256, sizes.height, sizes.width, 3), dtype=np.uint8)
    for cache in ("device", "mmap"):
        bank, rng = ImageBank(images, bench.device, cache=cache), np.random.default_rng(1)

        def batch(bank=bank, rng=rng):
            for policy in bench.settings.augmentation.values():
                found = bank.batch(rng.integers(0, 256, sizes.batch))
                apply(found, draw(policy, sizes.batch, found.shape[2:], rng))

        rows.append(bench.row(f"augmented images of a step, from {cache}", batch,
                              bench.steps if cache == "device" else 0))
    return rows


def memories(bench):
    """Time a step of the memories, and its matching on the host."""
    rows, k = [], bench.sizes.prototypes
    start = [p.to(bench.device) for p in bench_memory.draw(*k.values(), bench.model.feature_dim)]
    batch = Batch({}, {m: np.repeat(np.arange(4), bench.sizes.batch // 4) for m in Modality}, {}, {})
    features = {m: torch.randn(bench.sizes.batch, bench.model.feature_dim, device=bench.device) for m in Modality}
    for epoch, name in ((0, "without"), (1, "with")):
        method = start_method(bench.settings, dict(zip(Modality, start)), epoch)

        def step(method=method):
            method.update(features, batch)
            return method.prototypes()      # a swap that was put off is done

        rows.append(bench.row(f"memories {' x '.join(map(str, k.values()))}, {name} swap", step,
                              bench.steps if epoch else 0))
    similarity = (start[0] @ start[1].T).cpu().numpy()
    rows.append(Row("of it the matching, on the host beside the next forward pass", measure(
        lambda: linear_sum_assignment(similarity, maximize=True))))
    return rows


def sysu_trial(seed, queries):
    """Draw a trial of SYSU-MM01's all-search: distance, query and gallery ids, query and gallery cameras."""
    rng = np.random.default_rng(seed)
    query_ids, gallery_ids = rng.integers(0, 96, queries), np.arange(301) % 96
    distance = rng.random((queries, 301), dtype=np.float32) - np.float32(0.3) * (query_ids[:, None] == gallery_ids)
    return distance, query_ids, gallery_ids, rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], 301)


def metrics(bench):
    """Time the metrics of ten trials, on the host."""
    trials = [sysu_trial(seed, bench.sizes.queries) for seed in range(10)]
    return [Row(f"metrics, ten trials of {bench.sizes.queries} x 301", measure(
        lambda: [rank_metrics(*trial, "sysu") for trial in trials], 1, 0), 1 / load_config().TEST.EVERY)]


def prompts(bench):
    """Time a step of the prompt stage: texts of the clusters in a batch, forward and backward."""
    sizes, settings = bench.sizes, prompt_settings(load_config())
    torch.manual_seed(0)
    text_sizes = CLIPTextCfg() if sizes is FULL else CLIPTextCfg(width=64, heads=2, layers=1)
    clip = CLIP(16 * sizes.channels, CLIPVisionCfg(layers=(1, 1, 1, 1), width=32, image_size=64), text_sizes)
    text, rng = TextTower(clip).to(bench.device), np.random.default_rng(0)
    labels = {m: rng.integers(0, sizes.prototypes[m], n) for m, n in sizes.images.items()}
    state, pairs = PromptState(text, labels, settings), 2 * sizes.batch
    projections = {m: torch.randn(pairs, 16 * sizes.channels, device=bench.device) for m in Modality}
    row = bench.row(f"prompt step, {pairs} pairs", lambda: prompt_step(
        text, state.prompts, state.optimizer, projections, {m: labels[m][:pairs] for m in Modality}))
    count = settings.epochs * -(-max(sizes.images.values()) // pairs)
    row.note += f"; {count * row.seconds / 60:.3g} minutes for the {settings.epochs} epochs of the prompt stage"
    return [row]
