"""Whether one group of runs is better than another: paired differences on the same queries, with intervals."""
from typing import NamedTuple

import numpy as np

from configs.groups import REPEATS, distinct_names, groups_of
from configs.identity import BASELINE
from report.results import TRAINED
from report.run_files import MODEL_NAMES, is_untrained
from utils.errors import UserError, quoted
from utils.seeding import numpy_rng

RESAMPLES = 10_000
AT_ONCE = 200       # resamples: bounds the memory
SAME = ("DATASET.NAME", "DATASET.TRIAL", "TEST.TRIALS", "images", "galleries")     # of one test; settings say why
PER_QUERY = "per_query.npz"
NUMBERS = {"rank1": "Rank-1", "mAP": "mAP"}
HEAD = ("test", "number", "difference", "95 % interval", "verdict", "interval over")     # of `Compared.cells`
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

    def cells(self):
        """Write the comparison as texts, in percentage points; HEAD names them."""
        mean, low, high = (f"{100 * value:+.2f}".replace("-", "−") for value in self.found[:3])
        verdict = ("better" if self.found.low > 0 else "worse" if self.found.high < 0 else
                   f"not told apart by {self.runs}")
        over = [self.runs] * (self.runs != SINGLE) + [f"{self.queries:,} queries"] * (self.queries > 0)
        return (self.test, NUMBERS[self.number], mean, f"{low} to {high}", verdict,
                " and ".join(over) + " alone" * (len(over) == 1))


def as_lines(rows):
    """Write comparisons, a list of `Compared`, as lines of text."""
    cells = [row.cells() for row in rows]
    test, number, mean, ends, *_ = (max(map(len, column)) for column in zip(*cells))
    return "\n".join(f"{c[0]:<{test}}  {c[1]:<{number}}  {c[2]:>{mean}}  95 % from {c[3]:<{ends}}  "
                     f"p {row.found.p:.4f}  {c[4]}, over {c[5]}" for c, row in zip(cells, rows))


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
    pairs = [(_tests(a), _tests(b)) for a, b in _pairs(first, second)]
    common = list(dict.fromkeys(key for ours, theirs in pairs for key in ours if key in theirs))
    if not common:
        raise UserError(f"{quoted(first[0].folder)} and {quoted(second[0].folder)} have no test in common; expected "
                        "tests of the same stage, protocol and mode. Test both with test.py")
    rows = []
    for key in sorted(common, key=lambda key: (BASELINE, *TRAINED, "").index(key[0])):
        both = [(ours[key], theirs[key]) for ours, theirs in pairs if key in ours and key in theirs]
        digests = {(a[1]["identity"]["checkpoint"], b[1]["identity"]["checkpoint"]) for a, b in both}
        if key[0] != BASELINE or any(a != b for a, b in digests):       # one baseline differs from itself by nothing
            rows += _compared(key, both)
    return rows


def _pairs(first, second):
    """Pair the runs of two groups by what they repeat. Raises UserError: nothing is the same."""
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    ours, theirs = ({tuple(run.settings.get(key) for key in REPEATS): run for run in group}
                    for group in (first, second))
    if not ours.keys() & theirs.keys():
        raise UserError(f"the runs of {quoted(first[0].folder)} and of {quoted(second[0].folder)} have no "
                        "seed in common; expected the same seeds. Train the second method with those of the first")
    return [(ours[key], theirs[key]) for key in ours if key in theirs]


def _tests(run):
    """Give a run's tests of last epochs, or of a test's folder its own: {(stage, mode, protocol): (folder, record)}."""
    found, alone = {}, is_test(run)
    for tested in run.tests:
        record = tested.record
        if "identity" not in record or tested.differs or (tested.folder != "." if alone else "best" in tested.of):
            continue
        stage = "" if alone else BASELINE if is_untrained(record) else MODEL_NAMES.get(tested.of)
        if stage is not None:
            found.setdefault((stage, record["mode"], record["identity"]["TEST.PROTOCOL"]), (tested.path, record))
    return found


def _compared(key, both):
    """Compare the records of one test: [`Compared`]. Args: key: of `_tests`; both: [(its value, the other run's)]."""
    stage, mode, _ = key
    for (ours, record), (theirs, other) in both:
        a, b = record["identity"], other["identity"]
        if told := next((name for name in SAME if a.get(name) != b.get(name)), None):
            found = " and ".join(str(tested.get(told) or "not stated")[:12] for tested in (a, b))     # of a digest
            raise UserError(f"{quoted(ours)} and {quoted(theirs)} are tests of different {told} ({found}), so their "
                            "numbers do not compare. Test both alike")
    stored = all((folder / PER_QUERY).is_file() for pair in both for folder, _ in pair)
    if not stored and len(both) == 1:
        raise UserError(f"{quoted(both[0][0][0])} or {quoted(both[0][1][0])} holds no {PER_QUERY}, and one run alone "
                        "tells nothing of chance. Test both checkpoints again: test.py writes it")
    trials = {record["identity"]["DATASET.TRIAL"] for (_, record), _ in both}
    runs = SINGLE if len(both) == 1 else f"{len(both)} {'runs' if len(trials) > 1 else 'seeds'}"
    sets = {}
    for pair in both:
        ours, theirs = (query_numbers(folder, mode) if stored else {name: np.array([record[name]]) for name in NUMBERS}
                        for folder, record in pair)
        sets.setdefault(repr([pair[0][1]["identity"].get(name) for name in SAME]), []).append(
            {name: theirs[name] - ours[name] for name in NUMBERS})
    rows = []
    for name in NUMBERS:
        differences = [np.stack([of[name] for of in found]) for found in sets.values()]
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
