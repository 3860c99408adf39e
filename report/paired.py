"""Whether one group of runs is better than another: paired differences on the same queries, with intervals."""
from typing import NamedTuple

import numpy as np

from configs.groups import REPEATS, distinct_names, groups_of
from report.results import TRAINED
from report.run_files import MODEL_NAMES
from utils.errors import UserError, quoted
from utils.seeding import numpy_rng

RESAMPLES = 10_000
AT_ONCE = 200       # resamples: bounds the memory
SAME = ("DATASET.NAME", "DATASET.TRIAL", "TEST.TRIALS", "images", "galleries")     # of one test; settings say why
PER_QUERY = "per_query.npz"
NUMBERS = {"rank1": "Rank-1", "mAP": "mAP"}
SINGLE = "one run each"
INTERVAL = "interval: bootstrap over the queries and the runs, those of one seed paired"


class Difference(NamedTuple):
    """Mean difference, the ends of its 95 % confidence interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


class Compared(NamedTuple):
    """How much better one group of runs is than another one in one number of one test."""

    test: str               # "train_clip.py all", stage and mode
    number: str             # of NUMBERS
    found: Difference
    queries: int            # 0 where numbers of single queries are not stored
    runs: str = SINGLE      # "3 seeds": pairs of runs

    def __str__(self):
        """Write the comparison as a line, in percentage points."""
        mean, low, high = (f"{100 * value:+.2f}".replace("-", "−") for value in self.found[:3])
        verdict = f"not told apart by {self.runs}"
        if self.found.low > 0:
            verdict = "better"
        elif self.found.high < 0:
            verdict = "worse"
        if self.runs == SINGLE:
            over = f"{self.queries:,} queries alone"
        else:
            over = f"{self.runs} and {self.queries:,} queries" if self.queries else f"{self.runs} alone"
        return (f"{self.test:<23}  {NUMBERS[self.number]:<6}  {mean:>6}  95 % from {low:>6} to {high:>6}  "
                f"p {self.found.p:.4f}  {verdict}, over {over}")


def paired_bootstrap(differences, rng, resamples=RESAMPLES):
    """Estimate a mean difference and its 95 % interval by a bootstrap over queries and over runs.

    The estimate is the mean of all rows' means. One resample is the sum of two independent parts. Queries: of each set
    Q queries are drawn with replacement, and their differences, each the mean over the set's runs, are averaged (Efron
    and Tibshirani, "An Introduction to the Bootstrap", 1993). Runs, where there are S > 1: s / sqrt(S) times a draw
    from Student's t with S - 1 degrees of freedom, s the standard deviation (n - 1) of the rows' means. (To draw 2 to
    5 runs with replacement gives intervals that are too short by half.) The interval is that of the percentiles 2.5 and
    97.5. p is twice the smaller share of resamples on the other side of 0, or on it, (count + 1) / (resamples + 1), at
    most 1. Queries count as independent, although those of one person are alike.

    Args:
        differences: [(S, Q) array], one for each set of queries: second minus first of S pairs of runs, one set for
            all seeds, as a rule; with several sets (RegDB's trials) S is the number of all rows.
        rng: numpy Generator; resamples: how many.
    Returns: `Difference`.
    """
    rows = np.concatenate([found.mean(axis=1) for found in differences])
    means = np.zeros(resamples)
    for found in differences:
        of_query, share = found.mean(axis=0), len(found) / len(rows)
        means += share * np.concatenate([
            of_query[rng.integers(0, len(of_query), (min(AT_ONCE, resamples - start), len(of_query)))].mean(axis=1)
            for start in range(0, resamples, AT_ONCE)])
    if len(rows) > 1:
        means += rows.std(ddof=1) / len(rows) ** 0.5 * rng.standard_t(len(rows) - 1, resamples)
    low, high = np.quantile(means, (0.025, 0.975))
    other_side = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(float(rows.mean()), float(low), float(high),
                      min(1.0, 2 * float(other_side + 1) / (resamples + 1)))


def is_test(run):
    """Tell whether the folder of a `RunFiles` is that of a test."""
    return (run.folder / "metrics.json").is_file()


def group_runs(runs):
    """Group runs, each a `RunFiles`, by method and settings: name -> [`RunFiles`], in the order of the runs.

    The folder of a test, and of a run whose settings are not known, is a group of its own.
    """
    alone = {run.folder for run in runs if is_test(run) or not run.settings}
    varied = {key for run in runs for key in run.varied} - set(REPEATS)
    names = groups_of({run.folder: run.settings_of("finetune") for run in runs if run.folder not in alone}, varied)
    names |= dict(zip(alone, distinct_names(list(alone))))
    groups = {}
    for run in runs:
        groups.setdefault(names[run.folder], []).append(run)
    return groups


def compare(first, second):
    """Compare a group of runs with the first one on the tests that both have: [`Compared`].

    Runs of the same seed and trial are paired; single ones are paired as they are. Numbers are of the last epochs.

    Args: first, second: lists of `RunFiles`.
    Raises: UserError: no two runs share a seed, no test is of both, or two were done in other ways.
    """
    ours, theirs = ({tuple(run.settings.get(key) for key in REPEATS): run for run in group}
                    for group in (first, second))
    pairs = ([(first[0], second[0])] if len(first) == len(second) == 1 else
             [(ours[key], theirs[key]) for key in ours if key in theirs])
    if not pairs:
        raise UserError(f"the runs of {quoted(first[0].folder)} and of {quoted(second[0].folder)} have no "
                        "seed in common; expected the same seeds. Train the second method with those of the first")
    tests = {}
    for a, b in pairs:
        mine, others = _tests(a), _tests(b)
        for key in mine:
            if key in others:
                tests.setdefault(key, []).append((mine[key], others[key]))
    if not tests:
        raise UserError(f"{quoted(first[0].folder)} and {quoted(second[0].folder)} have no test in common; expected "
                        "tests of the same stage, protocol and mode. Test both with test.py")
    by_stage = sorted(tests, key=lambda key: key[0], reverse=True)      # "prepare", "finetune"
    return [row for key in by_stage for row in _compared(key, tests[key])]


def _tests(run):
    """Give a run's tests of last epochs, or of a test's folder its own: {(stage, mode, protocol): `Tested`}."""
    alone = is_test(run)
    return {("" if alone else MODEL_NAMES[tested.of], tested.record["mode"],
             tested.record["identity"]["TEST.PROTOCOL"]): tested for tested in run.tests
            if "identity" in tested.record and not tested.differs
            and (tested.path == run.folder if alone else tested.of in ("prepare_last", "model_last"))}


def _compared(key, both):
    """Compare the results of one test: [`Compared`]. Args: key: of `_tests`; both: [(`Tested`, the other run's)]."""
    stage, mode, _ = key
    for pair in both:
        a, b = (tested.record["identity"] for tested in pair)
        if told := next((name for name in SAME if a.get(name) != b.get(name)), None):
            found = " and ".join(str(tested.get(told) or "not stated")[:12] for tested in (a, b))     # of a digest
            raise UserError(f"{quoted(pair[0].path)} and {quoted(pair[1].path)} are tests of different {told} "
                            f"({found}), so their numbers do not compare. Test both alike")
    stored = all((tested.path / PER_QUERY).is_file() for pair in both for tested in pair)
    if not stored and len(both) == 1:
        raise UserError(f"{quoted(both[0][0].path)} or {quoted(both[0][1].path)} holds no {PER_QUERY}, and one run "
                        "alone tells nothing of chance. Test both checkpoints again: test.py writes it")
    trials = {pair[0].record["identity"]["DATASET.TRIAL"] for pair in both}
    runs = SINGLE if len(both) == 1 else f"{len(both)} {'runs' if len(trials) > 1 else 'seeds'}"
    by_queries = {}         # pairs that have the same queries -> their differences
    for pair in both:
        ours, theirs = (query_numbers(tested.path, mode) if stored else
                        {name: np.array([tested.record[name]]) for name in NUMBERS} for tested in pair)
        of_queries = by_queries.setdefault(repr([pair[0].record["identity"].get(name) for name in SAME]), [])
        of_queries.append({name: theirs[name] - ours[name] for name in NUMBERS})
    rows = []
    for name in NUMBERS:
        differences = [np.stack([of[name] for of in found]) for found in by_queries.values()]
        found = paired_bootstrap(differences, numpy_rng(0, "paired bootstrap", *key, name))
        rows.append(Compared(f"{TRAINED.get(stage, stage)} {mode}".strip(), name, found,
                             sum(of.shape[1] for of in differences) if stored else 0, runs))
    return rows


def query_numbers(folder, mode):
    """Read what a test wrote of each query that is scored: {"rank1": (Q,), "mAP": (Q,)}, means over the trials."""
    with np.load(folder / PER_QUERY, allow_pickle=False) as stored:
        return mean_of_trials(stored[f"{mode}_first_match"], stored[f"{mode}_average_precision"])


def mean_of_trials(first_match, average_precision):
    """Average the numbers of each query that is scored. Args: as `Evaluation.per_query` of processor/evaluate.py."""
    scored = ~np.isnan(first_match).all(axis=0)
    first, precision = first_match[:, scored].astype(np.float64), average_precision[:, scored].astype(np.float64)
    return {"rank1": np.nanmean(np.where(np.isnan(first), np.nan, first == 1), axis=0),
            "mAP": np.nanmean(precision, axis=0)}
