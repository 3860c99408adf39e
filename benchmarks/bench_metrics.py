"""Retrieval metrics at the sizes of the test protocols."""
import numpy as np

from benchmarks import reference
from benchmarks.harness import Results
from processor.metrics import rank_metrics

TRIALS = 10


def sysu_trial(seed, shots=1, queries=3803):
    """(distance, query ids, gallery ids, query cameras, gallery cameras) of the size of SYSU-MM01, all-search.

    shots: images of each person in each camera, 1 or 10.
    """
    rng, size = np.random.default_rng(seed), 301 * shots
    query_ids, gallery_ids = rng.integers(0, 96, queries), np.arange(size) % 96
    distance = rng.random((queries, size), dtype=np.float32)
    distance -= 0.3 * (query_ids[:, None] == gallery_ids)
    return distance, query_ids, gallery_ids, rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], size)


def regdb_trial(seed):
    """The same at RegDB's size: 206 persons, 10 images each and modality."""
    ids = np.repeat(np.arange(206), 10)
    rng = np.random.default_rng(seed)
    distance = rng.random((2060, 2060), dtype=np.float32) - np.float32(0.3) * (ids[:, None] == ids)
    return distance, ids, ids, None, None


def main():
    """Run and save, after a check that both sides agree."""
    results = Results("metrics")
    trials = [sysu_trial(seed) for seed in range(TRIALS)]
    for name, target, data, protocol in (("SYSU-MM01, ten trials of 3803 x 301", "< 1.5 s", trials, "sysu"),
                                         ("SYSU-MM01, ten shots, 3803 x 3010", "", [sysu_trial(0, 10)], "sysu"),
                                         ("RegDB, 2060 x 2060", "< 0.5 s", [regdb_trial(0)], "regdb")):
        ours, released = rank_metrics(*data[0], protocol), reference.rank_metrics(*data[0], protocol)
        np.testing.assert_allclose([*ours.cmc, ours.mAP, ours.mINP], [*released[0], *released[1:]], atol=1e-6)
        results.compare(name, lambda d=data, p=protocol: [rank_metrics(*trial, p) for trial in d],
                        lambda d=data, p=protocol: [reference.rank_metrics(*trial, p) for trial in d],
                        bound=lambda d=data: [np.argsort(trial[0], axis=1, kind="stable") for trial in d],
                        target=target, note="bound: the stable sort alone", repeats=3)
    results.save()


if __name__ == "__main__":
    main()
