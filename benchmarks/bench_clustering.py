"""Time pseudo labels: the whole of `cluster()` beside a bare FAISS flat search, the dense way, and the matrix product.

    python -m benchmarks.bench_clustering                               # at SYSU size
    python -m benchmarks.bench_clustering --sizes 5000 20000 50000 100000
"""
import argparse
import multiprocessing
import resource
import time

import numpy as np
import torch

from benchmarks import harness, reference
from benchmarks.harness import Results, Row, measure, peak_memory
from clustering.labels import cluster
from clustering.quality import cluster_quality

SIZE, DIM, K1, K2, EPS, MIN_SAMPLES = 22258, 2048, 30, 6, 0.6, 4
LOOKS = 24                  # directions in which persons, and images of one person, differ
HARD = "hard clusters"
CASES = {"clear clusters": 0.4, HARD: 0.8}      # noise of an image, where persons differ by 1 in each direction


def draw(n, noise, seed=0):
    """Draw an (n, DIM) float32 array of unit rows, and their (n,) persons: 40 to 55 images each.

    With noise 0.8 persons are merged and split and 6 % (of 5,000) to 20 % (of 20,000) of the images are outliers.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(40, 56, n // 40 + 1)
    person = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)[:n])
    basis = rng.standard_normal((LOOKS, DIM), dtype=np.float32)
    look = rng.standard_normal((len(sizes), LOOKS), dtype=np.float32) + rng.standard_normal(LOOKS, dtype=np.float32)
    x = np.empty((n, DIM), dtype=np.float32)
    for start in range(0, n, 4096):                     # in blocks: never a second copy
        block = x[start:start + 4096]
        own = noise * rng.standard_normal((len(block), LOOKS), dtype=np.float32)
        np.matmul(look[person[start:start + 4096]] + own, basis, out=block)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return x, person


def on_device(x):
    """Return the features as a tensor, on the GPU if there is one."""
    return torch.from_numpy(x).cuda() if torch.cuda.is_available() else torch.from_numpy(x)


def flat_search(x):
    """Search exactly by FAISS: (N, K1) neighbours."""
    import faiss
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    return index.search(x, K1)[1]


def product(x, rows=1024):
    """Compute the matrix of all inner products, block by block, each thrown away."""
    for block in x.split(rows):
        block @ x.T


def run(x):
    """Call `cluster` with the settings released for SYSU-MM01."""
    return cluster(x, K1, K2, EPS, MIN_SAMPLES)


def prepare(n, noise):
    """Draw features for `peak_memory`, which measures the rest; a small run first loads the libraries."""
    run(draw(500, noise)[0])
    x = draw(n, noise)[0]
    return lambda: run(x)


def same_partition(a, b):
    """Tell whether two labelings split the images alike; outliers are a part of their own."""
    pairs = len(set(zip(a.tolist(), b.tolist())))
    return pairs == len(set(a.tolist())) == len(set(b.tolist()))


def quality(labels, persons):
    """Say how hard the case was: clusters, outliers, and the ARI of what is clustered with the persons."""
    found = cluster_quality(labels, persons)
    return (f"{labels.max() + 1} clusters of {len(np.unique(persons))} persons, {found['outlier_share']:.0%} outliers, "
            f"ARI {found['ari']:.3f}")


def compare(n, repeats, dense):
    """Measure time and memory of both cases at SYSU size, and whether the dense way gives the same labels."""
    results = Results("clustering")
    for case, noise in CASES.items():
        x, persons = draw(n, noise)
        ours = on_device(x)
        timed = [measure(f, repeats) for f in (lambda v=ours: run(v), lambda v=x: flat_search(v),
                                               lambda v=ours: product(v))]
        found = run(ours)
        memory = peak_memory(prepare, n, noise) / 1e9
        results.add(Row(f"{case}: cluster(), {n} x {DIM}; reference: bare FAISS flat search alone", *timed,
                        "<= 1.6 x the search, <= 1.2 GB", f"{timed[0] / timed[1]:.2f} x the search, {memory:.2f} GB "
                        f"above the features (host); {quality(found, persons)}; bound: all products"))
        if dense:
            nearest = flat_search(x)
            started = time.perf_counter()
            labels = reference.cluster(x, K1, K2, EPS, MIN_SAMPLES, nearest)
            slow = time.perf_counter() - started + timed[1]
            results.add(Row(f"{case}: reference: search + dense N x N, row by row + DBSCAN", timed[0], slow, None, "",
                            f"same partition: {same_partition(labels, found)}"))
    results.save()


def at_size(n, noise):
    """Measure one clustering in a process of its own: seconds, peak of host memory in bytes, and `quality`."""
    run(draw(500, noise)[0])
    x, persons = draw(n, noise)
    x = on_device(x)
    started = time.perf_counter()
    labels = run(x)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, quality(labels, persons)


def sizes(counts):
    """Measure time, memory and labels at several sizes of the hard case, and plot them beside the table."""
    results, measured = Results("clustering sizes"), []
    for n in counts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory, found = pool.apply(at_size, (n, CASES[HARD]))
        measured.append((n, seconds, memory / 1e9))
        results.add(Row(f"{HARD}: cluster(), {n} x {DIM}", seconds, target="< 6 GB" if n == 100_000 else "",
                        note=f"peak {memory / 1e9:.2f} GB (host), with features and libraries; {found}"))
    results.save()
    plot(measured)


def plot(measured):
    """Save time (s) and memory (GB) over N; measured: rows of these three."""
    from matplotlib.figure import Figure  # which a machine for `make gpu` may lack

    counts, seconds, memory = zip(*sorted(measured))
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    for axes, values, name in zip(figure.subplots(1, 2), (seconds, memory), ("time, s", "peak of host memory, GB")):
        axes.plot(counts, values, "o-")
        axes.set(xlabel="images", title=name, xlim=0, ylim=0)
        axes.grid(alpha=0.3)
    figure.savefig(harness.FOLDER / f"clustering_sizes-{harness.device_stem()}.svg", metadata={"Date": None})


def main():
    """Run and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=SIZE, help="images of the comparison")
    parser.add_argument("--sizes", type=int, nargs="+", help="only these sizes, instead of the comparison")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense", action="store_true", help="run the dense N x N reference too (minutes, 6 GB)")
    arguments = parser.parse_args()
    if arguments.sizes:
        sizes(arguments.sizes)
    else:
        compare(arguments.n, arguments.repeats, arguments.dense)


if __name__ == "__main__":
    main()
