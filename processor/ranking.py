"""Ranked lists of a test, as arrays and as files that other programs can read."""
import csv
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from processor.metrics import average_precision, hidden_images, rank_gallery
from utils.checkpoint import write_atomically
from utils.modality import Modality

LISTED = 20         # gallery images per query in the CSV
COLUMNS = ("trial", "query", "query_person", "query_camera", "rank", "gallery", "gallery_person", "gallery_camera",
           "distance", "match", "scored")       # scored: whether the query has a match anywhere in its list


@dataclass(frozen=True)
class Ranking:
    """The gallery of one trial, sorted for every query; images that the protocol hides from a query come last."""

    evaluation: object      # the `Evaluation` of all trials
    trial: int              # its number
    query_modality: Modality
    query: np.ndarray       # (Q,) positions in the test images of that modality
    gallery: np.ndarray     # (Q, G) positions in those of the other modality, nearest first
    distance: np.ndarray    # (Q, G) cosine distance of each, or what the evaluation measured
    match: np.ndarray       # (Q, G) bool: not hidden, and of the query's person
    shown: np.ndarray       # (Q,) how many images are not hidden

    @cached_property
    def average_precision(self):
        """(Q,) average precision of each query; NaN for queries without a match."""
        return average_precision(self.match)


def people(data, retrieval, trial=0):
    """Return the persons of the queries and of a trial's gallery, (Q,) and (G,), then the cameras of both.

    Args: data: `DataSet`; retrieval: `Retrieval`; trial: index in retrieval.galleries.
    """
    m = retrieval.query_modality
    sides = (data.test[m], retrieval.query), (data.test[m.other], retrieval.galleries[trial])
    return [getattr(images, what)[positions] for what in ("persons", "cameras") for images, positions in sides]


def rank_trial(data, retrieval, evaluation, trial=0):
    """Rank the gallery of one trial: `Ranking`. Args: as `people`; evaluation: the retrieval's `Evaluation`."""
    m, gallery = retrieval.query_modality, retrieval.galleries[trial]
    query_ids, gallery_ids, *cameras = people(data, retrieval, trial)
    hidden = hidden_images(retrieval.rule, query_ids, gallery_ids, *cameras)
    match = (query_ids[:, None] == gallery_ids) & ~hidden
    sides = [_features_at(evaluation, *side) for side in ((m, retrieval.query), (m.other, gallery))]
    measure = evaluation.measure
    distance = measure(*map(torch.from_numpy, sides)) if measure else 1 - sides[0] @ sides[1].T
    order = rank_gallery(distance, hidden)
    return Ranking(evaluation, int(retrieval.trials[trial]), m, retrieval.query, gallery[order],
                   np.take_along_axis(distance, order, axis=1), np.take_along_axis(match, order, axis=1),
                   (~hidden).sum(axis=1))


def _features_at(evaluation, modality, positions):
    """Look up the features of test images at positions (P,): (P, D) float32 array."""
    known, values = evaluation.features[modality]
    return values.float().cpu().numpy()[np.searchsorted(known, positions)]


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
    path, arrays = Path(folder) / "features.npz", {"dataset": np.array(data.name)}
    known = {m: evaluations[0].features[m][0] for m in Modality}
    for m, images in data.test.items():
        arrays |= {f"{m.value}_features": _features_at(evaluations[0], m, known[m]),
                   f"{m.value}_paths": np.array(images.paths)[known[m]],
                   f"{m.value}_persons": images.persons[known[m]], f"{m.value}_cameras": images.cameras[known[m]]}
    for retrieval in retrievals:
        m, mode = retrieval.query_modality, retrieval.mode
        arrays |= {f"{mode}_protocol": np.array(retrieval.protocol), f"{mode}_rule": np.array(retrieval.rule),
                   f"{mode}_query": np.searchsorted(known[m], retrieval.query)}
        for trial, gallery in zip(retrieval.trials, retrieval.galleries):
            arrays[f"{mode}_gallery_{trial}"] = np.searchsorted(known[m.other], gallery)
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def save_per_query(folder, evaluations):
    """Write per_query.npz, each query's numbers in each trial, from which other statistics are made: its path.

    `MODE_first_match` and `MODE_average_precision` (T, Q) are those of `Evaluation.per_query`, as float32.
    Raises: UserError: as `write_atomically`.
    """
    path = Path(folder) / "per_query.npz"
    arrays = {f"{evaluation.mode}_{name}": numbers.astype(np.float32) for evaluation in evaluations
              for name, numbers in evaluation.per_query().items()}
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def save_ranked_lists(folder, data, retrievals, evaluations):
    """Write ranking_MODE.csv of every retrieval, the 20 nearest gallery images of every query and trial: the paths.

    Args: data: `DataSet`; retrievals, evaluations: lists of `Retrieval` and their `Evaluation`.
    Raises: UserError: as `write_atomically`.
    """
    written = []
    for retrieval, evaluation in zip(retrievals, evaluations):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for index in range(len(retrieval.trials)):
            table.writerows(_csv_rows(data, rank_trial(data, retrieval, evaluation, index)))
        written.append(Path(folder) / f"ranking_{retrieval.mode}.csv")
        write_atomically(written[-1], lambda file, text=text: file.write(text.getvalue().encode()))
    return written


def _csv_rows(data, ranking):
    """Give a row for each query and each of its nearest gallery images."""
    queries, candidates = data.test[ranking.query_modality], data.test[ranking.query_modality.other]
    scored = ranking.match.any(axis=1)
    for q, position in enumerate(ranking.query):
        query = (ranking.trial, queries.paths[position], queries.persons[position], queries.cameras[position])
        for rank in range(min(LISTED, ranking.shown[q])):
            g = ranking.gallery[q, rank]
            yield (*query, rank + 1, candidates.paths[g], candidates.persons[g], candidates.cameras[g],
                   f"{ranking.distance[q, rank]:.6f}", int(ranking.match[q, rank]), int(scored[q]))
