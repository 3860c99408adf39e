"""Pseudo labels: the whole of `cluster()` beside a bare FAISS flat search, the dense way, and the matrix product."""
import argparse
import time

import numpy as np
import torch

from benchmarks import reference
from benchmarks.harness import Results, Row, measure, peak_memory
from utils.clustering import cluster

SIZE, DIM, K1, K2, EPS, MIN_SAMPLES = 22258, 2048, 30, 6, 0.6, 4
CASES = {"clear clusters": 0.8, "blurred clusters": 3.0}       # length of the noise beside centroids of length 1


def draw(n, noise, seed=0):
    """(N, DIM) float32 array, unit rows: clusters of 40 to 55 images around centroids that share a direction."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(40, 56, n // 40 + 1)
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)[:n])
    centroid = rng.standard_normal((len(sizes), DIM), dtype=np.float32) + rng.standard_normal(DIM, dtype=np.float32)
    centroid /= np.linalg.norm(centroid, axis=1, keepdims=True)
    x = rng.standard_normal((n, DIM), dtype=np.float32)
    x *= noise / DIM ** 0.5
    for start in range(0, n, 4096):
        x[start:start + 4096] += centroid[label[start:start + 4096]]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def flat_search(x):
    """FAISS's exact search: (N, K1) neighbours."""
    import faiss
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    return index.search(x, K1)[1]


def product(x, rows=1024):
    """The matrix of all inner products, block by block, each thrown away."""
    for block in x.split(rows):
        block @ x.T


def run(x):
    """`cluster` at the settings released for SYSU-MM01."""
    return cluster(x, K1, K2, EPS, MIN_SAMPLES)


def prepare(n, noise):
    """For `peak_memory`: features are drawn, the rest is measured; a small run first loads the libraries."""
    run(draw(500, noise))
    x = draw(n, noise)
    return lambda: run(x)


def same_partition(a, b):
    """Whether two labelings split the images alike; outliers are a part of their own."""
    pairs = len(set(zip(a.tolist(), b.tolist())))
    return pairs == len(set(a.tolist())) == len(set(b.tolist()))


def compare(repeats, dense):
    """At SYSU size: time and memory of both cases, and whether the dense way gives the same labels."""
    results, on_gpu = Results("clustering"), torch.cuda.is_available()
    for case, noise in CASES.items():
        x = draw(SIZE, noise)
        ours = torch.from_numpy(x).cuda() if on_gpu else torch.from_numpy(x)
        timed = [measure(f, repeats) for f in (lambda v=ours: run(v), lambda v=x: flat_search(v),
                                               lambda v=ours: product(v))]
        memory = peak_memory(prepare, SIZE, noise) / 1e9
        results.add(Row(f"{case}: cluster(), {SIZE} x {DIM}; reference: bare FAISS flat search alone", *timed,
                        "<= 1.6 x the search, <= 1.2 GB", f"{timed[0] / timed[1]:.2f} x the search, {memory:.2f} GB "
                        "above the features (host); bound: all products"))
        if dense:
            nearest = flat_search(x)
            started = time.perf_counter()
            labels = reference.cluster(x, K1, K2, EPS, MIN_SAMPLES, nearest)
            slow = time.perf_counter() - started + timed[1]
            results.add(Row(f"{case}: reference: search + dense N x N, row by row + DBSCAN", timed[0], slow, None, "",
                            f"same partition: {same_partition(labels, run(ours))}"))
    results.save()


def sizes(counts):
    """Time, memory and labels at several sizes."""
    results = Results("clustering sizes")
    for n in counts:
        x = torch.from_numpy(draw(n, CASES["blurred clusters"]))
        started = time.perf_counter()
        labels = run(x)
        seconds = time.perf_counter() - started
        memory = peak_memory(prepare, n, CASES["blurred clusters"]) / 1e9
        results.add(Row(f"cluster() of {n} x {DIM}", seconds,
                        note=f"{labels.max() + 1} clusters, {(labels < 0).mean():.0%} outliers, peak {memory:.2f} GB "
                             "above the features"))
    results.save()


def main():
    """Run and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", help="only these sizes, instead of the comparison")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense", action="store_true", help="run the dense N x N reference too (minutes, 6 GB)")
    arguments = parser.parse_args()
    if arguments.sizes:
        sizes(arguments.sizes)
    else:
        compare(arguments.repeats, arguments.dense)


if __name__ == "__main__":
    main()
