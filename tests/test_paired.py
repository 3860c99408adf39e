"""Whether one method is better than another: paired differences of runs, and their intervals."""
import json
import math
import re
import shutil

import numpy as np
import pytest

from report.paired import group_runs, paired_bootstrap
from report.run_files import read_run
from tests.tested import add_test, record, runs_of
from tools import experiments
from utils.errors import UserError


def test_bootstrap_over_queries():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 400))
    found, again, other = (paired_bootstrap([noise + 0.1], np.random.default_rng(seed)) for seed in (1, 1, 2))
    spread = noise.std() / 20
    assert found.mean == pytest.approx(noise.mean() + 0.1) and found == again != other
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.05)
    assert found.p == pytest.approx(1 - math.erf(found.mean / spread / 2 ** 0.5), abs=0.02)
    assert paired_bootstrap([np.ones((1, 5))], rng, resamples=99).p == 2 / 100
    assert paired_bootstrap([np.zeros((2, 5))], rng) == (0, 0, 0, 1)


@pytest.mark.parametrize("runs, of_runs, of_queries", [(1, 0, 1), (2, 1, 0.3)])
def test_intervals_hold_the_true_difference_as_often_as_they_say(runs, of_runs, of_queries):
    """Of new runs on new queries; of a single run, nothing is said about other runs."""
    rng, held, times = np.random.default_rng(runs), 0, 300
    for _ in range(times):
        effects = of_runs * rng.normal(size=(runs, 1)) + of_queries * 5 * rng.normal(size=40)
        found = paired_bootstrap([effects + rng.normal(size=(runs, 40))], rng, resamples=400)
        held += found.low <= 0 <= found.high
    assert 0.91 < held / times < 0.99


def test_sets_of_queries_are_weighted_by_their_runs():
    """RegDB's trials have queries of their own; so have two seeds of the first here."""
    found = paired_bootstrap([np.full((2, 9), 0.3), np.full((1, 3), 0.9)], np.random.default_rng(0))
    assert found.mean == pytest.approx(0.5) and found.low < 0 < found.high


def grid(folder, share, seeds=(1, 2, 3), trials=(), **settings):
    """Write runs of one method that find each query by chance; what finds a query finds it with any larger share."""
    for seed in seeds:
        for trial in trials or (1,):
            right = np.random.default_rng([seed, trial]).random(200 + trial) < share
            record(folder / f"seed{seed}-trial{trial}", seed=seed, queries=right.astype(float), images=str(trial),
                   tested={"DATASET__TRIAL": trial}, DATASET={"NAME": "sysu", "TRIAL": trial}, **settings)
    return folder


def compared(capsys, *folders):
    experiments.main(["compare", *map(str, folders)])
    head, *lines, empty, how = capsys.readouterr().out.splitlines()
    assert empty == "" and how.startswith("interval: bootstrap over the queries and the runs")
    return head, lines


def test_seeds_are_paired_and_the_verdict_is_in_words(tmp_path, capsys):
    base = grid(tmp_path / "base", 0.5)
    better = grid(tmp_path / "idea", 0.6, seeds=(3, 1, 2, 9), METHOD={"NAME": "pgm"})
    head, lines = compared(capsys, base, better)
    assert head == "pgm against cclnet, percentage points" and len(lines) == 2
    rank1, mAP = (re.split("  +", line) for line in lines)
    assert rank1[:2] == ["train_clip.py all", "Rank-1"]
    assert rank1[-1] == "better, over 3 seeds and 201 queries"
    found = [np.mean([json.loads(path.read_text())["rank1"] for path in folder.glob("seed[123]-*/tests/*/*.json")])
             for folder in (base, better)]
    assert float(rank1[2]) == pytest.approx(100 * (found[1] - found[0]), abs=0.006)
    assert mAP[2] == rank1[2]
    alike = grid(tmp_path / "alike", 0.5001, METHOD={"NAME": "rpnr"})
    assert "not told apart by 3 seeds, over" in compared(capsys, base, alike)[1][0]


def test_two_tests_of_one_run(tmp_path, capsys):
    run = grid(tmp_path / "base", 0.3, seeds=[1]) / "seed1-trial1"
    before = add_test(run, 0, "prepare_last", queries=np.zeros(201), images="1", DATASET__NAME="sysu").parent
    [after] = run.glob("tests/model_last*")
    for folder in (before, after):
        (folder / "config.yml").write_bytes((run / "config.yml").read_bytes())
    head, lines = compared(capsys, before, after)
    assert head == f"{after.name} against {before.name}, percentage points" and re.match("all +Rank-1  \\+", lines[0])
    assert lines[0].endswith("better, over 201 queries alone")


def test_what_is_compared_without_single_queries_and_what_is_not(tmp_path, capsys):
    base, other = grid(tmp_path / "base", 0.3), grid(tmp_path / "other", 0.6, METHOD={"NAME": "pgm"})
    trials = [grid(tmp_path / "trials" / name, share, seeds=[1], trials=(1, 2, 3), METHOD={"NAME": name})
              for name, share in (("cclnet", 0.6), ("pgm", 0.3))]      # which have queries of their own
    assert compared(capsys, *trials)[1][0].endswith("worse, over 3 runs and 606 queries")
    for path in other.glob("*/tests/*/per_query.npz"):
        path.unlink()
    assert compared(capsys, base, other)[1][0].endswith("better, over 3 seeds alone")

    def refuses(sentence, *folders):
        with pytest.raises(UserError, match=sentence):
            experiments.main(["compare", *map(str, folders)])

    refuses("all runs are of one method, cclnet; expected those of another", base)
    one, another = base / "seed1-trial1", other / "seed1-trial1"
    refuses("holds no per_query.npz, and one run alone tells nothing of chance", one, another)
    apart = grid(tmp_path / "apart", 0.3, seeds=(7, 8), METHOD={"NAME": "rpnr"})
    refuses("have no seed in common", base, apart)
    trial2 = grid(tmp_path / "trial2", 0.3, trials=[2], seeds=[1], METHOD={"NAME": "rpnr"})
    refuses(r"are tests of different DATASET.TRIAL \(2 and 1\), so their numbers do not compare", trial2, one)


def test_runs_that_differ_in_their_seed_alone_belong_together(tmp_path):
    """A key that a run does not name has its default; of equal runs in two folders each is of its folder's group."""
    def found(*folders):
        return {name: len(group) for name, group in group_runs([read_run(folder) for folder in folders]).items()}

    a = runs_of(tmp_path / "a", [(0.1,)] * 2, CLUSTER={"K1": 30})
    b = runs_of(tmp_path / "b", [(0.2,)] * 3)[2:]       # K1 is 30 by default
    assert found(*a, *b, *runs_of(tmp_path / "c", [(0.2,)], CLUSTER={"K1": 25})) == {
        "cclnet, CLUSTER.K1 30": 3, "cclnet, CLUSTER.K1 25": 1}
    shutil.copytree(tmp_path / "a", tmp_path / "changed")
    assert found(*a, tmp_path / "changed/seed1", *b) == {"cclnet, a": 2, "cclnet, changed": 1, "cclnet, b": 1}
