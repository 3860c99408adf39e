"""Test-time retrieval: every image embedded once, then as many trials as wanted."""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from processor.features import embed
from processor.metrics import average_precision, hidden_images, rank_gallery, rank_metrics
from utils.distributed import ALONE, Processes
from utils.errors import UserError
from utils.modality import Modality

RANKS = (1, 5, 10, 20)
TRIALS_AT_ONCE = 8      # ranked by threads: NumPy sorts without holding the interpreter


@dataclass(frozen=True)
class Evaluation:
    """Results of a `Retrieval`, as fractions of 1."""

    protocol: str
    mode: str
    trials: tuple           # trial numbers
    per_trial: tuple        # `RankMetrics` of each
    features: dict = field(default=None, repr=False, compare=False)    # Modality -> (U,) positions, (U, D) features
    measure: object = field(default=None, repr=False, compare=False)    # of `rank_features`

    def mean(self):
        """Average over the trials: {"rank1", "rank5", "rank10", "rank20", "mAP", "mINP", "queries", "scored"}.

        "scored" of the "queries" have a match in the gallery; the others are in no mean. Where trials differ in that,
        it is the number of the trial with the fewest.
        """
        rows = [trial_numbers(result) for result in self.per_trial]
        return {**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
                "queries": len(self.per_trial[0].counted), "scored": min(row["scored"] for row in rows)}

    def per_query(self):
        """Return the trials' numbers of each query: {"first_match": (T, Q), "average_precision": (T, Q)} float.

        They are NaN where a query has no match. "first_match" is the rank that CMC counts, from 1.
        """
        numbers = np.full((2, len(self.per_trial), len(self.per_trial[0].counted)), np.nan)
        for trial, result in enumerate(self.per_trial):
            numbers[:, trial, result.counted] = result.first, result.average_precision
        return dict(zip(("first_match", "average_precision"), numbers))


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


def trial_numbers(result):
    """Name the numbers of one `RankMetrics`; where the list is shorter than a rank, its last entry counts."""
    numbers = {f"rank{r}": float(result.cmc[min(r, len(result.cmc)) - 1]) for r in RANKS}
    return {**numbers, "mAP": result.mAP, "mINP": result.mINP, "scored": result.scored}


@dataclass(frozen=True)
class Tester:
    """Tests a model while it is trained. `banks`: Modality -> `ImageBank` of the test images; others as `evaluate`."""

    data: object            # `DataSet`
    banks: dict
    retrieval: object       # `Retrieval`
    every: int              # epochs between tests
    batch_size: int
    precision: str
    processes: Processes = ALONE
    mirrored: bool = False

    @property
    def device(self):
        """Return the device of the test images."""
        return self.banks[Modality.RGB].device

    def is_due(self, epoch, epochs):
        """Tell whether an epoch is tested: every few epochs, and the last."""
        return epoch == epochs or epoch % self.every == 0

    def __call__(self, model):
        """Return the `Evaluation` of a model."""
        return evaluate(model, self.data, self.banks, [self.retrieval], self.batch_size, self.precision,
                        self.processes, self.mirrored)[0]

    def rank(self, evaluation):
        """Return the `Ranking` of the first trial of a test, for the page."""
        return rank_trial(self.data, self.retrieval, evaluation)


def people(data, retrieval, trial=0):
    """Return the persons of the queries and of a trial's gallery, (Q,) and (G,), then the cameras of both.

    Args: data: `DataSet`; retrieval: `Retrieval`; trial: index in retrieval.galleries.
    """
    m = retrieval.query_modality
    sides = (data.test[m], retrieval.query), (data.test[m.other], retrieval.galleries[trial])
    return [getattr(images, what)[positions] for what in ("persons", "cameras") for images, positions in sides]


def check_matches(data, retrieval):
    """Refuse a test that cannot be scored before anything is trained.

    Raises: UserError: a trial's gallery holds nobody of the queries, or nobody whom they may see.
    """
    for trial in range(len(retrieval.trials)):
        query_ids, gallery_ids, *cameras = people(data, retrieval, trial)
        hidden = hidden_images(retrieval.rule, query_ids, gallery_ids, *cameras)
        if not ((query_ids[:, None] == gallery_ids) & ~hidden).any():
            raise UserError(_no_score(data, retrieval, "no query has a match in the gallery"))


def _no_score(data, retrieval, problem):
    return (f"the {retrieval.protocol} test of {data.root} cannot be scored: {problem}; expected test persons with "
            "images of both modalities. Check the test ids")


def evaluate(model, data, banks, retrievals, batch_size, precision, processes=ALONE, mirrored=False):
    """Rank the galleries of several retrievals by cosine distance; every image that any of them uses is embedded once.

    Args:
        model: `CCLNet`; data: `DataSet`; banks: Modality -> `ImageBank` of the test images;
        retrievals: list of `Retrieval`; batch_size, precision: of the embedding, in which the processes share; the
        first of them ranks; mirrored: test the mean of an image's and its mirror image's features, of unit length.
    Returns: list of `Evaluation`, one per retrieval.
    Raises: UserError: a trial's gallery holds nobody of the queries.
    """
    features = {}
    for m in Modality:
        used = np.unique(np.concatenate([positions for r in retrievals for positions in (
            [r.query] if r.query_modality is m else r.galleries)]))
        rows = embed(model, banks[m], m, indices=used, batch_size=batch_size, precision=precision, mirrored=mirrored,
                     processes=processes)["feature"]
        features[m] = used, F.normalize(rows, dim=1) if mirrored else rows
    ranked = processes.once(lambda: [replace(rank_features(data, retrieval, features), features=None)
                                     for retrieval in retrievals])
    return [replace(found, features=features) for found in ranked]


def rank_features(data, retrieval, features, measure=None):
    """Rank the galleries of a retrieval: its `Evaluation`.

    Args: features: Modality -> (U,) ascending positions in the test images, (U, D) tensor, L2-normalised;
        measure: function of (Q, D) and (G, D) tensors that gives the distances of a trial, (Q, G) array; None: cosine
        distance.
    Raises: UserError: a trial's gallery holds nobody of the queries.
    """
    m = retrieval.query_modality

    def of(modality, positions):
        known, values = features[modality]
        return values[np.searchsorted(known, positions)]

    shown, query = np.unique(np.concatenate(retrieval.galleries)), of(m, retrieval.query)
    if measure is None:
        distance = (1 - query @ of(m.other, shown).T).cpu().numpy()

    def rank(trial, gallery):
        found = measure(query, of(m.other, gallery)) if measure else distance[:, np.searchsorted(shown, gallery)]
        return rank_metrics(found, *people(data, retrieval, trial), retrieval.rule)

    try:
        with ThreadPoolExecutor(1 if measure else TRIALS_AT_ONCE) as pool:
            results = tuple(pool.map(rank, *zip(*enumerate(retrieval.galleries))))
    except ValueError as error:
        raise UserError(_no_score(data, retrieval, error))
    return Evaluation(retrieval.protocol, retrieval.mode, retrieval.trials, results, features, measure)


def rank_trial(data, retrieval, evaluation, trial=0):
    """Rank the gallery of one trial: `Ranking`. Args: as `people`; evaluation: the retrieval's `Evaluation`."""
    m, gallery = retrieval.query_modality, retrieval.galleries[trial]
    query_ids, gallery_ids, *cameras = people(data, retrieval, trial)
    hidden = hidden_images(retrieval.rule, query_ids, gallery_ids, *cameras)
    match = (query_ids[:, None] == gallery_ids) & ~hidden
    sides = [features_at(evaluation, *side) for side in ((m, retrieval.query), (m.other, gallery))]
    measure = evaluation.measure
    distance = measure(*map(torch.from_numpy, sides)) if measure else 1 - sides[0] @ sides[1].T
    order = rank_gallery(distance, hidden)
    return Ranking(evaluation, int(retrieval.trials[trial]), m, retrieval.query, gallery[order],
                   np.take_along_axis(distance, order, axis=1), np.take_along_axis(match, order, axis=1),
                   (~hidden).sum(axis=1))


def features_at(evaluation, modality, positions):
    """Look up the features of test images at positions (P,): (P, D) float32 array."""
    known, values = evaluation.features[modality]
    return values.float().cpu().numpy()[np.searchsorted(known, positions)]


def metrics_record(evaluation, data, **extra):
    """Collect what goes into metrics.json: protocol, means, how many queries they are of, CMC, each trial's numbers."""
    shortest = min(len(result.cmc) for result in evaluation.per_trial)
    return {"dataset": data.name, "protocol": evaluation.protocol, "mode": evaluation.mode,
            "trials": len(evaluation.trials), **evaluation.mean(), **extra,
            "cmc": np.mean([result.cmc[:shortest] for result in evaluation.per_trial], axis=0).round(6).tolist(),
            "per_trial": [{"trial": trial, **trial_numbers(result)}
                          for trial, result in zip(evaluation.trials, evaluation.per_trial)]}


def format_table(rows):
    """Format {"what", and the numbers of `Evaluation.mean`} rows as a text table, in percent."""
    names = [*(f"rank{r}" for r in RANKS), "mAP", "mINP"]
    width = max(len(row["what"]) for row in rows)
    head = " " * width + "".join(f"{n.replace('rank', 'Rank-'):>9}" for n in names) + "   queries scored"
    return "\n".join([head, *(f"{row['what']:<{width}}" + "".join(f"{100 * row[n]:9.2f}" for n in names)
                              + f"   {row['scored']:,} of {row['queries']:,}" for row in rows)])
