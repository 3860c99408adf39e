"""What a grid of runs will cost on this machine, from one embedding, one clustering and a few steps of each stage.

With the images of the data set where they are there; else with synthetic ones, in the published numbers. Each script is
measured in a process of its own, so that its peak of memory is its own.
"""
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from loss.linking import start_heads, start_memory

from configs.defaults import load_config
from data.images import ImageBank, pick_cache
from data.llcm import LLCMDataSet
from data.pseudo_labels import make_pseudo_labels
from data.regdb import RegDBDataSet
from data.sysu import SysuDataSet
from model.clip import TextTower
from processor.evaluate import evaluate
from processor.features import embed
from processor.guidance import TextGuidance
from processor.metrics import rank_metrics
from processor.prompt import PromptBatches, PromptState, prompt_step, text_features
from processor.run.epoch import on_host
from processor.run.events import memory_use
from processor.run.resume import StateFile
from processor.setup import Setup, prompt_settings, train_settings
from processor.train import Batches, TrainState, UnderWay, train_step
from tools.lib.cost import StageCost, count_tests, duration
from utils.distributed import ALONE
from utils.errors import UserError
from utils.modality import Modality
from utils.runtime import pick_device

STEPS, WARM_UP = 8, 2
MODEL_SEEDS = ("SEED", "DATASET.TRIAL")     # runs that differ in these alone cost the same
GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """How many images a run embeds and ranks."""

    train: dict         # Modality -> training images
    persons: int        # of the training images
    test: dict          # Modality -> test images that one test embeds
    query: int
    gallery: int        # of one trial
    trials: int


def published_sizes(config):
    """Return the `Sizes` of a data set whose folder is not there, from the published numbers.

    Raises: UserError: none are published.
    """
    kinds = {"sysu": SysuDataSet, "regdb": RegDBDataSet, "llcm": LLCMDataSet}
    name, trials = config.DATASET.NAME, config.TEST.TRIALS
    if name not in kinds:
        raise UserError(f"DATASET.ROOT {config.DATASET.ROOT} is missing, and nothing is published of the data set "
                        f"{name}; set DATASET.ROOT to its folder")
    counts = kinds[name].published
    train = {m: counts[f"training {m.value.upper()} images"] for m in Modality}
    if name == "sysu":
        gallery = counts["indoor-search gallery images" if config.TEST.MODE == "indoor" else
                         "all-search gallery images"]
        test = {Modality.RGB: gallery * trials, Modality.IR: counts["test IR images"]}
        return Sizes(train, counts["training persons"], test, test[Modality.IR], gallery, trials)
    test, m = {m: counts[f"test {m.value.upper()} images"] for m in Modality}, (
        Modality.IR if config.TEST.MODE == "t2v" else Modality.RGB)
    if name == "regdb":
        return Sizes(train, counts["training persons"], test, test[m], test[m.other], 1)
    gallery = counts["test persons"] * (8 if m is Modality.RGB else 9)       # cameras of the other modality
    return Sizes(train, counts["training persons"], {m: test[m], m.other: min(test[m.other], gallery * trials)},
                 test[m], gallery, trials)


class Measured(Setup):
    """A script's objects, of the data set or, where it is missing, of as many synthetic images."""

    def __init__(self, config):
        self.is_there = config.DATASET.NAME == "demo" or Path(config.DATASET.ROOT).exists()
        if self.is_there:
            super().__init__(config, "plan")
        else:
            self.config, self.device, self.sizes = config, pick_device(config.DEVICE), published_sizes(config)
            self.processes = ALONE

    @cached_property
    def clip(self):
        """CLIP's weights, or random ones of its sizes where they cannot be had: the time is the same."""
        try:
            return super().clip
        except UserError:
            if self.config.MODEL.CLIP_WEIGHTS != "openai":
                raise
            return open_clip.create_model(self.config.MODEL.NAME).eval()

    def train_banks(self):
        """Open the training images: Modality -> `ImageBank`."""
        if self.is_there:
            return self.banks("train")
        shape = self.config.INPUT.HEIGHT, self.config.INPUT.WIDTH, 3
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        cache = pick_cache(self.config.DATASET.CACHE, sum(self.sizes.train.values()) * image.size, self.device)
        return {m: ImageBank(np.broadcast_to(image, (n, *shape)), self.device, cache=cache)
                for m, n in self.sizes.train.items()}

    def features(self, model, banks, heads, settings, mirrored=False):
        """Embed all training images: {head: Modality -> (N, D)}, seconds. Synthetic ones: some, scaled to all."""
        found, seconds = {head: {} for head in heads}, 0.0
        for m, bank in banks.items():
            some = None if self.is_there else np.arange(min(len(bank), 4 * settings.embed_batch_size))
            embed(model, bank, m, heads, np.arange(min(len(bank), settings.embed_batch_size)),
                  batch_size=settings.embed_batch_size, precision=settings.precision)          # warm up
            took, values = self.timed(lambda m=m, bank=bank, some=some: embed(
                model, bank, m, heads, some, batch_size=settings.embed_batch_size, precision=settings.precision,
                mirrored=mirrored))
            seconds += took * len(bank) / (len(bank) if some is None else len(some))
            for head in heads:
                found[head][m] = values[head] if some is None else self.synthetic(values[head].shape[1], len(bank))
        return found, seconds

    def synthetic(self, width, n):
        """Draw features (n, width) of as many persons as the data set has, each a direction with noise."""
        rng = torch.Generator().manual_seed(n)
        person = torch.arange(n) % self.sizes.persons
        looks = F.normalize(torch.randn(self.sizes.persons, width, generator=rng), dim=1)
        noise = F.normalize(torch.randn(n, width, generator=rng), dim=1)
        return F.normalize(looks[person] + noise, dim=1).to(self.device)

    def labels(self, features, settings):
        """Cluster: seconds, Modality -> (N,) labels. Raises UserError: all images are outliers."""
        return self.timed(lambda: {m: make_pseudo_labels(features[m], m, settings.cluster) for m in Modality})

    def test_seconds(self, model, embed_seconds, all_modes=False):
        """Measure one test. Args: embed_seconds: per image; all_modes: as test.py with TEST.MODE both."""
        test = self.config.TEST
        if self.is_there:
            retrievals = [self.data.retrieval(mode, test.TRIALS, test.PROTOCOL) for mode in (
                self.data.modes if all_modes else (self.retrievals[0].mode,))]
            banks = self.banks("test")
            return self.timed(lambda: evaluate(model, self.data, banks, retrievals, test.BATCH_SIZE,
                                               self.config.PRECISION))[0]
        sizes, rng = self.sizes, np.random.default_rng(0)
        ids, distance = np.arange(sizes.gallery) % 90, rng.random((sizes.query, sizes.gallery), dtype=np.float32)
        ranking = self.timed(lambda: rank_metrics(distance, np.arange(sizes.query) % 90, ids, np.full(sizes.query, 3),
                                                  np.full(sizes.gallery, 1),
                                                  self.config.DATASET.NAME))[0] * sizes.trials
        return (2 if all_modes else 1) * ranking + sum(sizes.test.values()) * embed_seconds

    def timed(self, function):
        """Call a function: seconds until its work is done, and what it returned."""
        self.wait()
        started = time.perf_counter()
        found = function()
        self.wait()
        return time.perf_counter() - started, found

    def wait(self):
        """Wait for the GPU, if there is one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_prepare(arguments, started):
    """Measure train_prepare.py: [`StageCost`]. Args: of `load_config`; started: time.time() before the process."""
    setup = Measured(load_config(*arguments))
    model, banks, config = setup.new_model(), setup.train_banks(), setup.config
    settings = train_settings(config, config.PREPARE.EPOCHS, config.PREPARE.RESTART_AT_CROSS, texts=False)
    once = time.time() - started
    return [_measure_stage("prepare", setup, model, banks, settings, once)]


def measure_clip(arguments, started):
    """Measure train_clip.py and test.py: [`StageCost`]. Args: as `measure_prepare`."""
    setup = Measured(load_config(*arguments))
    config, clip = setup.config, setup.clip
    model, text, banks = setup.new_model(), TextTower(clip).to(setup.device), setup.train_banks()
    settings, s = train_settings(config, config.FINETUNE.EPOCHS, config.FINETUNE.RESTART_AT_CROSS), prompt_settings(
        config)
    once = time.time() - started
    found, seconds = setup.features(model, banks, ("feature", "projection"), settings)
    _, labels = setup.labels(found["feature"], settings)
    state, batches = PromptState(text, labels, s), PromptBatches(banks, labels, s, 1)

    def step(number):
        batch = batches[number % len(batches)]
        prompt_step(text, state.prompts, state.optimizer, {m: found["projection"][m][batch[m]] for m in Modality},
                    {m: labels[m][batch[m]] for m in Modality})

    saving, size = _saving(state)
    prompt = StageCost("prompt", config.PROMPT.EPOCHS, len(batches) * _step_seconds(setup, step) + saving,
                       once_seconds=once + seconds, disk_gb=2 * size, **_memory(setup))
    texts_seconds, texts = setup.timed(lambda: text_features(text, state.prompts))
    guidance = TextGuidance(texts, labels, config.FINETUNE.LABEL_SMOOTHING)
    finetune = _measure_stage("finetune", setup, model, banks, settings, texts_seconds, guidance)
    images = sum(map(len, banks.values()))
    both = setup.test_seconds(model, seconds / images, all_modes=True)
    return [prompt, finetune, StageCost("test.py", 1, once + both, **_memory(setup))]


def _measure_stage(stage, setup, model, banks, settings, once, guidance=None):
    """Measure a contrastive stage: `StageCost`."""
    heads, mirrored = start_heads(settings.memory), settings.method.mirrored
    found, embed_seconds = setup.features(model, banks, heads, settings, mirrored)
    cluster_seconds, labels = setup.labels(found["feature"], settings)
    embedded = {m: {head: rows[m] for head, rows in found.items()} for m in Modality}
    state = TrainState(model, settings)
    model.train()
    steps, seconds = {}, {}
    swap_epoch = settings.memory.swap_epoch
    for epoch in (1, swap_epoch):
        trained, memory = start_memory(embedded, labels, epoch, settings, guidance)
        steps = Batches(banks, trained, settings, epoch)
        seconds[epoch] = len(steps) * _step_seconds(setup, lambda i, memory=memory, steps=steps: train_step(
            model, state.optimizer, memory, steps[i % len(steps)], guidance, settings.precision))
    state.under_way = UnderWay(trained, memory, 0.0)
    saving, size = _saving(state)
    test, checkpoint = setup.config.TEST, sum(v.numel() * v.element_size() for v in model.state_dict().values()) / GIB
    images = sum(map(len, banks.values()))
    return StageCost(
        stage, settings.epochs, embed_seconds + cluster_seconds + seconds[1] + 2 * saving,
        count_tests(settings.epochs, test.EVERY), setup.test_seconds(model, embed_seconds / images), once,
        max(0, settings.epochs - swap_epoch + 1), max(0.0, seconds[swap_epoch] - seconds[1]),
        disk_gb=2 * (size + checkpoint), **_memory(setup))


def _step_seconds(setup, step):
    """Take some steps: the median of their seconds. Args: step: function of the step's number."""
    for number in range(WARM_UP):
        step(number)
    return statistics.median(setup.timed(lambda number=number: step(WARM_UP + number))[0] for number in range(STEPS))


def _saving(state):
    """Save a state once: seconds, GiB."""
    with tempfile.TemporaryDirectory() as folder:
        file, started = StateFile(Path(folder) / "state.pth"), time.perf_counter()
        file.save({"state": on_host(state.state_dict())})
        return time.perf_counter() - started, file.path.stat().st_size / GIB


def _memory(setup):
    """Read the peaks so far: arguments of `StageCost`."""
    peak = memory_use(setup.device)
    return {"host_gb": peak["memory_gb"], "gpu_gb": peak.get("gpu_memory_gb", 0.0)}


def measure(config_file, words):
    """Measure all stages of a run, each script in a new process: [`StageCost`]. Raises UserError: as the scripts."""
    costs = []
    for function in (measure_prepare, measure_clip):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            costs += pool.apply(function, ((config_file, words), time.time()))
    return costs


def print_plan(experiments, at_once=1):
    """Measure the runs of a grid and print what each stage and all of it will cost; seeds and trials cost the same.

    Args: experiments: [`Experiment`]; at_once: runs at the same time, of whose slowing one another nothing is known.
    """
    groups, total, disk = {}, 0.0, 0.0
    for experiment in experiments:
        method = " ".join(f"{key} {value}" for key, value in experiment.varied.items() if key not in MODEL_SEEDS)
        groups.setdefault(method, []).append(experiment)
    device = pick_device(experiments[0].config.DEVICE)
    print(f"measured on {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'the CPU'}, "
          f"{torch.get_num_threads()} threads")
    for method, runs in groups.items():
        config = runs[0].config
        *stages, test = measure(runs[0].config_file, runs[0].words)
        tests = len(runs[0].tested) * test.seconds
        there = config.DATASET.NAME == "demo" or Path(config.DATASET.ROOT).exists()
        print(f"\n{method or config.DATASET.NAME}" + ("" if there else ": synthetic images, published numbers of them"))
        print(format_plan([*stages, StageCost(f"{len(runs[0].tested)} tests", 1, tests, host_gb=test.host_gb,
                                              gpu_gb=test.gpu_gb)]))
        total += len(runs) * (sum(cost.seconds for cost in stages) + tests)
        disk += len(runs) * sum(cost.disk_gb for cost in stages)
    together = f"; {at_once} at once share this machine's speed" if at_once > 1 else ""
    print(f"\n{len(experiments)} runs: {duration(total)} one after the other, {disk:.2f} GB on disk, and once "
          f"{_cache_gb(config):.2f} GB for the decoded images; pages, and decoding the images once, are not "
          f"counted{together}")


def _cache_gb(config):
    """Return the size of the decoded images of a data set (SYSU-MM01 missing: about, of the test gallery)."""
    setup = Measured(config)
    images = (sum(len(images) for _, images in setup.data.sets()) if setup.is_there else
              sum(setup.sizes.train.values()) + sum(setup.sizes.test.values()))
    return images * config.INPUT.HEIGHT * config.INPUT.WIDTH * 3 / GIB


def format_plan(costs):
    """Format a table of `StageCost`s with their sum."""
    head = ("stage", "epochs", "s/epoch", "tests", "s/test", "in all", "host GB", "GPU GB", "disk GB")
    rows = [(c.stage, str(c.epochs), f"{c.epoch_seconds:.1f}", str(c.tests), f"{c.test_seconds:.1f}",
             duration(c.seconds), f"{c.host_gb:.2f}", f"{c.gpu_gb:.2f}", f"{c.disk_gb:.2f}") for c in costs]
    rows.append(("a run", "", "", "", "", duration(sum(c.seconds for c in costs)),
                 f"{max(c.host_gb for c in costs):.2f}", f"{max(c.gpu_gb for c in costs):.2f}",
                 f"{sum(c.disk_gb for c in costs):.2f}"))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(f"{cell:{'<' if i == 0 else '>'}{width}}" for i, (cell, width) in enumerate(
        zip(row, widths))) for row in (head, *rows))
