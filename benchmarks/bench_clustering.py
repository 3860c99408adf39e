"""Time pseudo labels: the whole of `cluster()` beside a bare FAISS flat search.

    python -m benchmarks.bench_clustering       # at SYSU size
"""
import multiprocessing
import resource

import numpy as np
import torch

from benchmarks.harness import Results, Row, timed
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


def quality(labels, persons):
    """Say how hard the case was: clusters, outliers, and the ARI of what is clustered with the persons."""
    found = cluster_quality(labels, persons)
    return (f"{labels.max() + 1} clusters of {len(np.unique(persons))} persons, {found['outlier_share']:.0%} outliers, "
            f"ARI {found['ari']:.3f}")


def ours(noise):
    """Cluster once: seconds, labels, peak of host memory in bytes, and what of it is above the features."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in (500, SIZE):        # the first loads the libraries
        x = torch.from_numpy(draw(size, noise)[0]).to(device)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, labels = timed(lambda x=x: cluster(x, K1, K2, EPS, MIN_SAMPLES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, labels, peak * 1024, (peak - before) * 1024


def flat_search(x):
    """Search exactly by FAISS for K1 neighbours of each row."""
    import faiss
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    index.search(x, K1)


def main():
    """Run and save, each case in a process of its own."""
    results = Results("clustering")
    for case, noise in CASES.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, labels, peak, above = pool.apply(ours, (noise,))
        x, persons = draw(SIZE, noise)
        results.add(Row(f"{case}: cluster(), {SIZE} x {DIM}; reference: bare FAISS flat search alone", seconds,
                        timed(lambda x=x: flat_search(x))[0],
                        note=f"peak {peak / 1e9:.2f} GB (host), {above / 1e9:.2f} above the features and libraries; "
                             f"{quality(labels, persons)}"))
    results.save()


if __name__ == "__main__":
    main()
