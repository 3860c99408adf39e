"""Ranked lists, features and numbers of a test as files that other programs can read."""
import csv
import io
from pathlib import Path

import numpy as np

from processor.evaluate import features_at, rank_trial
from utils.checkpoint import write_atomically
from utils.modality import Modality

LISTED = 20         # gallery images per query in the CSV
COLUMNS = ("trial", "query", "query_person", "query_camera", "rank", "gallery", "gallery_person", "gallery_camera",
           "distance", "match", "scored")       # scored: whether the query has a match anywhere in its list


def save_rankings(folder, data, retrievals, evaluations):
    """Write ranked lists and features: the files' paths. Args, Raises: as `save_ranked_lists`."""
    return [*save_ranked_lists(folder, data, retrievals, evaluations),
            save_features(folder, data, retrievals, evaluations)]


def save_features(folder, data, retrievals, evaluations):
    """Write features.npz, which tools/evaluate.py reads: its path.

    It holds `rgb_features` (N, D) and `rgb_paths`, `rgb_persons`, `rgb_cameras` (N,) of the test images that were
    used, the same for `ir`; as rows of those, `MODE_query` and `MODE_gallery_TRIAL`; and the texts `dataset`,
    `MODE_protocol` and `MODE_rule` (of `processor.metrics.rank_metrics`).

    Args, Raises: as `save_ranked_lists`.
    """
    arrays, known = {"dataset": np.array(data.name)}, {m: evaluations[0].features[m][0] for m in Modality}
    for m, images in data.test.items():
        arrays |= {f"{m.value}_features": features_at(evaluations[0], m, known[m]),
                   f"{m.value}_paths": np.array(images.paths)[known[m]],
                   f"{m.value}_persons": images.persons[known[m]], f"{m.value}_cameras": images.cameras[known[m]]}
    for retrieval in retrievals:
        m, mode = retrieval.query_modality, retrieval.mode
        arrays |= {f"{mode}_protocol": np.array(retrieval.protocol), f"{mode}_rule": np.array(retrieval.rule),
                   f"{mode}_query": np.searchsorted(known[m], retrieval.query)}
        arrays |= {f"{mode}_gallery_{trial}": np.searchsorted(known[m.other], gallery)
                   for trial, gallery in zip(retrieval.trials, retrieval.galleries)}
    return _save(Path(folder) / "features.npz", arrays)


def save_per_query(folder, evaluations):
    """Write per_query.npz, each query's numbers in each trial, from which other statistics are made: its path.

    `MODE_first_match` and `MODE_average_precision` (T, Q) are those of `Evaluation.per_query`, as float32.
    Raises: UserError: as `write_atomically`.
    """
    return _save(Path(folder) / "per_query.npz", {
        f"{evaluation.mode}_{name}": numbers.astype(np.float32) for evaluation in evaluations
        for name, numbers in evaluation.per_query().items()})


def _save(path, arrays):
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def save_ranked_lists(folder, data, retrievals, evaluations):
    """Write ranking_MODE.csv of every retrieval, the 20 nearest gallery images of every query and trial: the paths.

    Args: data: `DataSet`; retrievals, evaluations: lists of `Retrieval` and their `Evaluation`.
    Raises: UserError: as `write_atomically`.
    """
    written = []
    for retrieval, evaluation in zip(retrievals, evaluations):
        text, m = io.StringIO(), retrieval.query_modality
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for trial in range(len(retrieval.trials)):
            ranking = rank_trial(data, retrieval, evaluation, trial)
            scored = ranking.match.any(axis=1)
            for q, query in enumerate(ranking.query):
                for rank, g in enumerate(ranking.gallery[q, :min(LISTED, ranking.shown[q])]):
                    table.writerow((ranking.trial, *_described(data.test[m], query), rank + 1,
                                    *_described(data.test[m.other], g), f"{ranking.distance[q, rank]:.6f}",
                                    int(ranking.match[q, rank]), int(scored[q])))
        written.append(Path(folder) / f"ranking_{retrieval.mode}.csv")
        write_atomically(written[-1], lambda file, text=text: file.write(text.getvalue().encode()))
    return written


def _described(images, position):
    return images.paths[position], images.persons[position], images.cameras[position]
