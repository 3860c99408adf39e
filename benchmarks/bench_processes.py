"""Embedding, clustering and training steps by one process and by several, one thread each.

    python -m benchmarks.bench_processes                        # 20,000 images to cluster, by 1 and 2 processes
    python -m benchmarks.bench_processes --clustered 100000     # minutes

The processes of a machine share its cores and its memory's speed, and whatever else runs there. So beside the time on
the clock stands the time of the processor that each process took, which other programs lengthen much less.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.bench_clustering import CASES, DIM, EPS, HARD, K1, K2, MIN_SAMPLES, draw
from benchmarks.harness import Results, Row, seconds, start_method
from clustering.jaccard import distances_of
from clustering.labels import dbscan
from clustering.neighbours import neighbours_of
from configs.defaults import load_config
from data.batches import Batches
from data.images import ImageBank
from model.batch_norm import spread_batch_norm
from model.cclnet import CCLNet
from model.towers.registry import load_tower
from processor.features import embed
from processor.run.state import TrainState
from processor.setup import train_settings
from processor.train import train_step
from utils.distributed import join_processes
from utils.modality import Modality

ROOT = Path(__file__).resolve().parents[1]
IMAGES, PERSONS, STEPS = 768, 32, 10


def timed(function, repeats=1):
    """Time a call: seconds on the clock and of the processor, the least of some repeats."""
    found = []
    for _ in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        function()
        found.append((time.perf_counter() - clock, time.process_time() - processor))
    return [min(values) for values in zip(*found)]


def training(processes):
    """Prepare the demo's training: a function that takes STEPS steps, one that embeds all images of a modality."""
    config = load_config("configs/demo.yml", ["PRECISION", "fp32", "METHOD.CROSS_EPOCH", "1"])
    settings = train_settings(config, "prepare")
    rng, shape = np.random.default_rng(0), (IMAGES, config.INPUT.HEIGHT, config.INPUT.WIDTH, 3)
    banks = {m: ImageBank(rng.integers(0, 256, shape, dtype=np.uint8)) for m in Modality}
    labels = {m: np.arange(IMAGES) % PERSONS for m in Modality}
    model = CCLNet(load_tower(config.MODEL.CLIP_WEIGHTS, height=shape[1], width=shape[2]))
    spread_batch_norm(model, 1, processes)
    state, generator = TrainState(model, settings), torch.Generator().manual_seed(0)
    wrapped = processes.wrap(model, lambda: model.parameters_without(("feature",)))
    prototypes = {m: torch.randn(PERSONS, model.feature_dim, generator=generator) for m in Modality}
    method = start_method(settings, {m: F.normalize(rows, dim=1) for m, rows in prototypes.items()}, 1)
    batches = Batches(banks, labels, settings, 1, processes=processes)

    def steps():
        wrapped.train()
        for step in range(STEPS):
            train_step(wrapped, state.optimizer, method, batches[step], None, "fp32")

    def embedding():
        embed(model, banks[Modality.RGB], Modality.RGB, batch_size=64, precision="fp32", processes=processes)

    return steps, embedding


def work(folder, clustered):
    """Measure in one of several processes that torchrun has started: FOLDER/RANK.json."""
    processes, found = join_processes("cpu"), {}
    steps, embedding = training(processes)
    steps()                         # warm
    found[f"{STEPS} training steps of the demo"] = timed(steps, 3)
    found[f"embedding of {IMAGES} images of the demo's size"] = timed(embedding, 3)
    x = torch.from_numpy(draw(clustered, CASES[HARD])[0])
    search, rest = (f"{part} of the pseudo labels of {clustered:,} x {DIM}" for part in ("neighbours", "rest"))
    for rows in (x[:500], x):           # the first is warm-up
        kept = []
        found[search] = timed(lambda rows=rows, kept=kept: kept.append(neighbours_of(rows, K1, processes)))
        found[rest] = timed(lambda kept=kept: processes.once(
            lambda: dbscan(distances_of(*kept.pop(), K1, K2, EPS), EPS, MIN_SAMPLES)))
    found[f"{clustered:,} x {DIM}: pseudo labels"] = [a + b for a, b in zip(found[search], found[rest])]
    (folder / f"{processes.rank}.json").write_text(json.dumps(found))
    processes.leave()


def measure(size, clustered):
    """Start `work` by torchrun: what -> (seconds on the clock, of the processor) of each process."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                        str(size), "-m", "benchmarks.bench_processes", "--work", folder, "--clustered", str(clustered)],
                       check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    return {what: [rank[what] for rank in ranks] for what in ranks[0]}


def main():
    """Run and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clustered", type=int, default=20_000, help="images whose pseudo labels are made")
    parser.add_argument("--processes", type=int, default=2, help="compared with one")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.clustered)
        return
    torch.set_num_threads(1)        # as in the processes, for the name of the table
    size = arguments.processes
    one, several = measure(1, arguments.clustered), measure(size, arguments.clustered)
    results = Results("processes")
    for what, ranks in several.items():
        clock, processor = (max(values) for values in zip(*ranks))
        alone, alone_processor = one[what][0]
        results.add(Row(f"{what}; ours: {size} processes, reference: one", clock, alone,
                        note=f"processor: {seconds(processor)} in the process that took most, "
                             f"{seconds(alone_processor)} alone: {processor / alone_processor:.2f} of it"))
    results.save()


if __name__ == "__main__":
    main()
