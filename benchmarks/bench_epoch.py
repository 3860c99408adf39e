"""One epoch of train_prepare.py at SYSU size on a GPU, part by part: images of random bytes, and a profile of steps."""
import argparse
import copy
import sys

import numpy as np
import torch

from benchmarks.bench_train_step import HEIGHT, WIDTH, embedding, rn50, training
from benchmarks.harness import Results, Row, measure, take_step
from clustering.labels import make_pseudo_labels
from configs.defaults import load_config
from data.batches import Batches
from data.images import ImageBank, pick_cache
from loss.method import EpochStart
from processor.features import embed_all
from processor.run.state import TrainState
from processor.setup import train_settings
from utils.modality import Modality

SIZES, PERSONS = {Modality.RGB: 22258, Modality.IR: 11909}, 395
TARGET_SECONDS, EMBED_BATCH, PROFILED = 12, 256, 20


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


def open_banks(share, device, size=(HEIGHT, WIDTH)):
    """Hold random images as a run does: Modality -> `ImageBank`.

    Args: share: of SYSU-MM01's images and persons; size: (height, width).
    """
    counts = {m: int(n * share) for m, n in SIZES.items()}
    cache = pick_cache("auto", sum(counts.values()) * size[0] * size[1] * 3, device)
    return {m: ImageBank(random_images(n, max(int(PERSONS * share), 4), seed, size), device, cache=cache)
            for seed, (m, n) in enumerate(counts.items())}


def timed(function):
    """Call a function once: seconds, and what it returned."""
    found = []
    return measure(lambda: found.append(function()), repeats=1, warmup=0), found[0]


def take_steps(state, method, batches, count):
    """Train on the first batches of an epoch."""
    state.model.train()
    for step in range(count):
        take_step(state.model, state.optimizer, method, batches[step], state.settings.precision)


def run_epoch(state, banks, epoch):
    """Run an epoch as `processor.train.train` does: {part: seconds}, the method, the batches."""
    s, seconds = state.settings, {}
    method, cameras = s.method(**s.of_method), {m: bank.cameras for m, bank in banks.items()}
    seconds["embedding all images"], features = timed(lambda: embed_all(state.model, banks, method, s))
    seconds["clustering both modalities"], labels = timed(lambda: {
        m: make_pseudo_labels(features["feature"][m], m, s.cluster) for m in Modality})
    seconds["start of the method"], labels = timed(lambda: method.start(EpochStart(features, labels, cameras), epoch))
    batches = Batches(banks, labels, s, epoch, method.views)
    seconds["training"], _ = timed(lambda: take_steps(state, method, batches, len(batches)))
    return seconds, method, batches


def bounds(state, banks, batches, device):
    """Measure the least that the tower's arithmetic needs, on images that lie there: {part: seconds}."""
    s, images = state.settings, sum(map(len, banks.values()))
    model = copy.deepcopy(state.model)
    tower = measure(embedding(model, device, s.precision, EMBED_BATCH, True)) / EMBED_BATCH * images
    step = measure(training(model, device, s.precision, batches.size // 2, True))
    return {"embedding all images": tower, "training": step * len(batches)}


def profile(state, method, batches, device):
    """Print where the time of some training steps goes."""
    with torch.profiler.profile() as found:
        take_steps(state, method, batches, min(PROFILED, len(batches)))
    print(found.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=20, max_name_column_width=60))


def main():
    """Run two epochs, the second of which counts; save its parts and print where the time of its steps goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16", choices=("released", "fp32", "tf32", "bf16"))
    parser.add_argument("--images", type=float, default=1.0,
                        help="share of SYSU-MM01's number of images; a small one also runs on a CPU, to try the script")
    parser.add_argument("--instances", type=int, default=16, help="images of each of the 4 clusters in a batch")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and arguments.images == 1:
        print("bench_epoch is skipped: an epoch of 34,167 images takes hours without a GPU, and torch finds none here")
        sys.exit(0)
    settings = train_settings(load_config(None, [
        "PRECISION", arguments.precision, "SAMPLER.INSTANCES", str(arguments.instances), "METHOD.CROSS_EPOCH", "1",
        "TEST.BATCH_SIZE", str(EMBED_BATCH)]), "prepare")
    banks = open_banks(arguments.images, device)
    state = TrainState(rn50().to(device, memory_format=torch.channels_last), settings)
    run_epoch(state, banks, 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    parts, method, batches = run_epoch(state, banks, 2)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
    results = Results("epoch of prepare at SYSU size")
    results.add(Row("whole epoch", sum(parts.values()), target=f"< {TARGET_SECONDS} s",
                    note=f"{arguments.precision}, peak {peak:.1f} GB of device memory"))
    trained, least = batches.size * len(batches), bounds(state, banks, batches, device)
    notes = {"embedding all images": "bound: the tower alone",
             "clustering both modalities": ", ".join(f"{batches.labels[m].max() + 1} {m.value} clusters"
                                                     for m in Modality),
             "training": f"{len(batches)} iterations, {trained / parts['training']:.0f} images/s; bound: the "
                         "optimiser's steps alone on images that lie there"}
    for what, seconds in parts.items():
        results.add(Row(what, seconds, None, least.get(what), note=notes.get(what, "")))
    results.add(Row("of it augmented batches", measure(lambda: batches[0]) * len(batches),
                    note="overlaps with the steps on a GPU"))
    profile(state, method, batches, device)
    if arguments.images == 1:
        results.save()


if __name__ == "__main__":
    main()
