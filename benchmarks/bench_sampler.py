"""An epoch's set-up at SYSU size: labels -> batches of both modalities."""
import numpy as np

from benchmarks import reference
from benchmarks.harness import Results
from data.sampler import cluster_batches, iterations_per_epoch

SIZES, CLUSTERS = {"rgb": 22258, "ir": 11909}, {"rgb": 600, "ir": 450}


def labels(seed=0, outliers=0.1):
    """Labels (N,) of both modalities, a tenth of them outliers."""
    rng = np.random.default_rng(seed)
    return {m: np.where(rng.random(n) < outliers, -1, rng.integers(0, CLUSTERS[m], n)) for m, n in SIZES.items()}


def main():
    """Run and save."""
    results, drawn = Results("sampler"), labels()
    iterations = iterations_per_epoch(*((y >= 0).sum() for y in drawn.values()), 64)

    def ours():
        return [cluster_batches(y, 4, 16, iterations, np.random.default_rng(0)) for y in drawn.values()]

    def released():
        return [reference.epoch_batches(y, 4, 16, iterations) for y in drawn.values()]

    results.compare(f"epoch set-up, {iterations} batches of 64 + 64", ours, released, target="< 0.1 s")
    results.save()


if __name__ == "__main__":
    main()
