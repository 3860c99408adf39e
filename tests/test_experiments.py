"""Grids of runs and their table: RegDB's trials on a miniature tree, and scripts of a second."""
import contextlib
import csv
import io
import json
import os
import re
import runpy
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scripts
from trees import regdb_tree

from configs.groups import group_names
from report.run_files import read_run
from tests.tested import add_test
from tools import experiments
from tools.lib import grid, schedule, summary
from tools.lib.grid import Experiment, Step, make_grid
from utils.errors import SIGNALS, Stopped, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """RegDB's layout: two trials, three training and three test persons, six images each per modality."""
    return regdb_tree(tmp_path_factory.mktemp("RegDB"), persons=3, images=6)


class InThisProcess:
    """Stands in for `subprocess.Popen`: runs a script here, at once, without pages of pictures, which take long."""

    started = []

    def __init__(self, words, stderr, **_):
        words = words[1:]
        if words[0] == "-C":        # git, which says of which commit a run is
            raise OSError("no git here")
        self.started.append(Path(words[0]).stem if words[0] != "-m" else words[1])
        errors, self.returncode = io.StringIO(), 0
        with contextlib.redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.setattr("report.write.save_report", lambda *_: None)
            try:
                if words[0] == "-m":
                    (Path(words[2]) / "report.html").touch()
                else:
                    runpy.run_path(words[0], run_name="__main__")
            except SystemExit as end:
                self.returncode = end.code or 0
        stderr.write(errors.getvalue().encode())

    def poll(self):
        return self.returncode


@pytest.fixture
def settings(root, tmp_path, tiny_clip_file, monkeypatch):
    """KEY VALUE words of a run of a second; scripts run in this process and their names are recorded."""
    InThisProcess.started = []
    monkeypatch.setattr(schedule.subprocess, "Popen", InThisProcess)
    monkeypatch.setattr(schedule, "SECONDS", 0)
    words = scripts.settings(DATASET__NAME="regdb", DATASET__ROOT=root, DATASET__CACHE_DIR=tmp_path / "cache",
                             OUTPUT_DIR=tmp_path / "runs" / "trial{trial}", MODEL__CLIP_WEIGHTS=tiny_clip_file,
                             CLUSTER__K1=4, CLUSTER__K2=2, CLUSTER__EPS=0.9, METHOD__CROSS_EPOCH=1)
    return words, InThisProcess.started


def test_trials_are_trained_once_and_tabulated(settings, tmp_path, capsys):
    words, started = settings
    runs = tmp_path / "runs"
    experiments.main(["run", "--trials", "1-2", *words])
    each = ["train_prepare", "train_clip", "test", "test", "test", "test", "report"]
    assert started == 2 * each and sorted(path.name for path in runs.iterdir()) == ["trial1", "trial2"]
    assert "2 of 2 runs are finished" in capsys.readouterr().out
    started.clear()
    experiments.main(["run", *words, "DATASET.CACHE", "mmap", "--trials", "1", "2"])      # no other training
    assert started == []
    [results] = (runs / "trial2/tests").glob("model_last-python-both-*/metrics.json")
    results.unlink()
    experiments.main(["run", *words, "--trials", "1", "2"])
    assert started == ["test", "report"]

    capsys.readouterr()
    next((runs / "trial2/tests").glob("prepare_best-*/metrics.json")).unlink()
    experiments.main(["table", str(runs)])
    said = capsys.readouterr()
    assert said.err == f"missing: {runs / 'trial2'} has no test of prepare_best\n"
    assert "71.94" in said.out and "README of the released code" in said.out and "50.02" not in said.out
    experiments.main(["table", str(runs / "trial1"), str(runs / "trial2"), str(runs), "--csv"])
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    ours = {(row["stage"], row["mode"]): row for row in table if not row["source"]}
    assert set(ours) == {(s, m) for s in ("train_prepare", "train_clip") for m in ("v2t", "t2v")}
    for mode in ("v2t", "t2v"):
        found = [next(r for path in runs.glob(f"trial{t}/tests/model_last-*/metrics.json")
                      for r in json.loads(path.read_text())["results"] if r["mode"] == mode)["mAP"] for t in (1, 2)]
        row = ours["train_clip", mode]
        assert (row["n"], row["method"]) == ("2", "all runs")
        assert float(row["last epoch mAP"]) == pytest.approx(100 * np.mean(found), abs=1e-4)
        assert float(row["last epoch mAP sd"]) == pytest.approx(100 * np.std(found, ddof=1), abs=1e-4)
    assert ours["train_prepare", "v2t"]["best on test rank1"]

    started.clear()
    with pytest.raises(UserError, match="trial1: train_prepare.py: the run in .* was started with CLUSTER.EPS 0.9"):
        experiments.main(["run", "--trials", "1", *words, "CLUSTER.EPS", "0.8"])
    assert started == ["train_prepare"]
    experiments.main(["table", str(runs)])
    assert f"failed: {runs / 'trial1'}: train_prepare.py: the run in" in capsys.readouterr().err


def test_a_failed_run_does_not_stop_the_others(settings, tmp_path, capsys):
    words, started = settings
    with pytest.raises(UserError) as error:
        experiments.main(["run", "--trials", "1", "--vary", "CLUSTER.MIN_SAMPLES", "25", "2", *words])
    assert "1 of 2 runs failed: CLUSTER.MIN_SAMPLES=25-trial1: train_prepare.py: all 18 rgb images are outliers" in str(
        error.value)
    assert started.count("train_prepare") == 2 and started.count("train_clip") == 1
    said = capsys.readouterr()
    assert "1 of 2 runs are finished" in said.out and "failed: " in said.err


def test_prepare_alone(settings, tmp_path, capsys):
    """Its table misses nothing; without --only the same command goes on with train_clip.py."""
    words, started = settings
    experiments.main(["run", "--only", "prepare", "--baseline", "--trials", "1", *words])
    assert started == ["train_prepare", "test", "test", "test", "report"]
    said = capsys.readouterr()
    assert "no run of 1 is missing" in said.err and "baseline" in said.out
    assert {row.stage for row in summary.summarise(summary.read_runs([tmp_path / "runs"], "python"))
            if not row.source} == {"baseline", "train_prepare"}
    started.clear()
    experiments.main(["run", "--trials", "1", *words])
    assert started == ["train_clip", "test", "test", "report"]


@pytest.mark.parametrize("words, sentence", [
    (["--trials", "11"], "DATASET.TRIAL is 11; RegDB has the trials 1 to 10"),
    (["--trials", "first"], "--trials first names no value"),
    (["--seeds", "1", "--vary", "CLUSTER.EPZ", "1"], "unknown key CLUSTER.EPZ; did you mean CLUSTER.EPS"),
    (["--vary", "CLUSTER.EPS", "0.5", "7"], "sets CLUSTER.EPS to 7; expected a number from 0 to 1"),
    (["--vary", "CLUSTER.EPS"], "--vary CLUSTER.EPS names no value"),
    (["--vary", "CLUSTER.EPS", "0.5", "0.50"], "would have the same settings; give every value once"),
    (["--vary", "CLUSTER.EPS", "0.5", "--vary", "CLUSTER.EPS", "0.6"], "--vary CLUSTER.EPS stands twice"),
    (["--seeds", "3-1"], "--seeds 3-1 names none"), (["--seeds", "1-30000"], "--seeds 1-30000 names more than 1,000"),
    (["--seeds", "1-999", "--vary", "CLUSTER.EPS", "0.5", "0.6"], "the grid has 1,998 runs; expected 1,000 at most"),
    (["--vary", "SEED", "1", "2"], "--vary SEED is not possible: give its values to --seeds"),
    (["--vary", "OUTPUT_DIR", "a", "b"], "every run has a folder of its own"),
    (["--at_once", "0"], "--at_once: '0' is no whole number from 1 to 1,000"),
    (["--trials", "1", "DATASET.NAME", "llcm"], "--trials are the splits of RegDB; llcm has one"),
    (["--sceds", "1"], "unrecognized arguments: --sceds")])
def test_wrong_grids_write_nothing(settings, tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        experiments.main(["run", *settings[0], *words])
    assert not (tmp_path / "runs").exists()


def test_words_of_the_command_line():
    options = experiments.parse_arguments(["run", "--seeds", "2", "4-6", "SEED", "3", "--vary", "CLUSTER.EPS", "0.5",
                                           "0.6", "DEVICE", "cpu", "--vary", "OPTIM.STEPS", "[1, 2]", "[3]",
                                           "--trials", "1", "TEST.EVERY=2"])
    assert (options.seeds, options.trials) == ([2, 4, 5, 6], [1])
    assert options.vary == [("CLUSTER.EPS", ["0.5", "0.6"]), ("OPTIM.STEPS", ["[1, 2]", "[3]"])]
    assert options.overrides == ["SEED", "3", "TEST.EVERY=2", "DEVICE", "cpu"]


def test_folders_are_named_by_what_differs():
    runs = make_grid(None, [], [1, 2], varied=[("OPTIM.STEPS", ["[1, 2]"]), ("MODEL.CLIP_WEIGHTS", ["a/b.pt"])])
    assert [str(e.folder) for e in runs] == [f"runs/sysu/OPTIM.STEPS=_1_2_-MODEL.CLIP_WEIGHTS=a_b.pt-seed{s}"
                                             for s in (1, 2)]
    assert [e.config.SEED for e in runs] == [1, 2] and runs[0].config.OPTIM.STEPS == [1, 2]
    runs = make_grid("configs/regdb.yml", ["OUTPUT_DIR", "x/t{trial}/y"], [3], [4, 5])
    assert [str(e.folder) for e in runs] == ["x/trial4-seed3", "x/trial5-seed3"]
    assert [str(e.folder) for e in make_grid(None, ["SEED", "9"])] == ["runs/sysu/seed9"]


@dataclass(frozen=True)
class Scripts(Experiment):
    """A run of two Python scripts of a second instead of the training's."""

    code: str = ""

    def steps(self):
        return [Step(name, ["-c", self.code, str(self.folder / name)], (self.folder / name).is_file)
                for name in ("first", "second")]


# Leaves a file whose name it is given. A signal ends it as it ends the training scripts.
WORK = """
import os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1])
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
(out.parent / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
with open(out.parent / "starts", "a") as file:
    file.write(out.name + " ")
began = time.time()
time.sleep(SECONDS)
out.write_text(f"{began} {time.time()}")
"""


def two_scripts(folder, names, code=WORK, seconds="0.3"):
    return [Scripts(name, folder / name, {}, None, (), code=code.replace("SECONDS", seconds)) for name in names]


def test_runs_at_the_same_time_share_threads_and_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [schedule._share(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["3", "5", "3"]
    assert schedule._share(0, 1) == {}
    runs = two_scripts(tmp_path, "abcd", seconds="1")
    assert schedule.run_here(runs, at_once=2) == []
    began, ended = zip(*(map(float, (tmp_path / name / script).read_text().split())
                         for name in "abcd" for script in ("first", "second")))
    together = [sum(b <= now < e for b, e in zip(began, ended)) for now in began]
    assert max(together) == 2       # and never more
    assert [(tmp_path / name / "threads").read_text() for name in "abcd"] == ["2"] * 4
    assert [(tmp_path / name / "starts").read_text() for name in "abcd"] == ["first second "] * 4


def test_a_signal_ends_the_scripts_and_the_grid_resumes(tmp_path):
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    runs = two_scripts(tmp_path, "abc", seconds="60")
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    with pytest.raises(Stopped, match="the same command resumes") as stop:
        schedule.run_here(runs, at_once=2)
    for each, handler in handlers.items():
        signal.signal(each, handler)
    assert stop.value.exit_code == 128 + signal.SIGUSR1
    (tmp_path / "a" / "first").write_text("done earlier")
    assert schedule.run_here(two_scripts(tmp_path, "abc")) == []
    assert (tmp_path / "a" / "starts").read_text() == "first second "        # first before, second now
    assert (tmp_path / "b" / "starts").read_text() == "first first second "
    assert (tmp_path / "c" / "starts").read_text() == "first second "


@pytest.mark.parametrize("code, sentence", [
    ("import sys; sys.exit('error: no such image; restore it')", "first: no such image; restore it (see "),
    ("raise ValueError('a defect')", "first: ValueError: a defect (see "),
    ("import os, sys; os.kill(os.getpid(), 9)", "first was ended by signal 9; was memory exhausted?"),
    ("import sys; print('error: a mistake', file=sys.stderr); sys.exit(2)", "first: a mistake"),
    ("pass", "first ended without an error and left its work undone")])
def test_failures_are_listed_with_their_sentence(tmp_path, code, sentence):
    bad, good = two_scripts(tmp_path, ["bad"], code) + two_scripts(tmp_path, ["good"])
    [(name, error)] = schedule.run_here([bad, good])
    assert name == "bad" and error.startswith(sentence)
    assert [read_run(run.folder).grid["error"] for run in (bad, good)] == [error, ""]


def test_jobs_of_a_cluster_are_queued_again_when_their_time_is_over(tmp_path, monkeypatch):
    """submitit's local executor: the job is interrupted as Slurm does before its time is over, and then resumes."""
    submitit, cloudpickle = pytest.importorskip("submitit"), pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=10)
    monkeypatch.setenv("PYTHONPATH", str(grid.REPOSITORY))
    # the first start of a script waits until it is stopped, the second one does its work
    waits_once = WORK.replace("time.sleep(SECONDS)", "time.sleep(600 if not mark.exists() and not mark.touch() else 0)"
                              ).replace("signal.signal", "mark = out.parent / 'mark'\nsignal.signal", 1)
    [run] = two_scripts(tmp_path, ["a"], waits_once)
    [job] = schedule.submit([run], executor)
    deadline = time.time() + 240
    while not (run.folder / "mark").exists() and time.time() < deadline:
        time.sleep(0.2)
    controller = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(controller[0]), signal.SIGUSR2)
    assert job.result() == ""
    assert (run.folder / "starts").read_text() == "first first second "


def record(folder, value=0.5, checkpoint="model_last", seed=1, protocol="SYSU-MM01 all-search", images="", tested=None,
           **settings):
    """Write a run's folder as a script leaves it, with one test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(json.dumps({"SEED": seed, "DATASET": {"NAME": "sysu", "TRIAL": 1}, **settings}))
    return add_test(folder, value, checkpoint, protocol=protocol, images=images, record={"dataset": "SYSU-MM01"},
                    DATASET__NAME="sysu", **(tested or {}))


def ours(folder, *logged):
    """The table's rows of our runs."""
    return [row for row in summary.summarise(summary.read_runs([folder], "python"), logged) if not row.source]


def test_table_of_two_methods(tmp_path, capsys):
    for seed, value in ((1, 0.5), (2, 0.6), (3, 0.7)):
        for checkpoint, more in (("model_last", 0), ("model_best", 0.1)):
            record(tmp_path / f"a{seed}", value=value + more, seed=seed, METHOD={"SWAP_ORDER": "released"},
                   TEST={"EVERY": seed}, checkpoint=checkpoint)
    record(tmp_path / "b1", value=0.25, METHOD={"SWAP_ORDER": "simultaneous"})
    released, other = ours(tmp_path)
    assert (released.method, released.n) == ("METHOD.SWAP_ORDER released", 3)
    assert (other.method, other.n) == ("METHOD.SWAP_ORDER simultaneous", 1)
    assert released.numbers["last epoch", "rank1"] == pytest.approx((60, 10))
    assert released.numbers["best on test", "mAP"] == pytest.approx((70, 10))
    assert other.numbers["last epoch", "rank1"] == (25, None) and ("best on test", "rank1") not in other.numbers
    experiments.main(["table", str(tmp_path)])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if "released " in line and "train_clip" in line)
    assert line.split()[-18:] == ["60.00", "±", "10.00"] * 3 + ["70.00", "±", "10.00"] * 3
    assert text.index("last epoch") < text.index("best on test") < text.index("method")
    assert re.search(r"^cclnet, CLIP RN50: README of the released code +train_clip .*–  +55.31 +50.38 +–$", text, re.M)
    assert "abstract of the paper, ACM MM 2023: Rank-1 54.0" in text and "pgm, " not in text
    experiments.main(["table", str(tmp_path), "--published", "pgm"])
    text = capsys.readouterr().out
    assert re.search(r"^pgm, AGW ResNet-50: log of the released code +– +all .*–  +56.29 +51.36 +35.06$", text, re.M)
    assert "sdcl, " not in text
    experiments.main(["table", str(tmp_path), "--latex"])
    latex = capsys.readouterr().out
    assert r"METHOD.SWAP\_ORDER released & train\_clip & all & 3 & 60.00 $\pm$ 10.00 &" in latex
    assert r"\multicolumn{3}{c}{best on test}" in latex and r"\bottomrule" in latex
    assert r"\multicolumn{10}{l}{\footnotesize all: SYSU-MM01 all-search; 1,100 of 1,200 queries scored} \\" in latex


@pytest.mark.parametrize("changes, names", [
    ([{"SEED": 1, "DEVICE": "cpu"}, {"SEED": 2, "OUTPUT_DIR": "x", "TEST.EVERY": 9}], ["all runs"] * 2),
    # a key of one method alone says nothing more than the method's name, unless nothing else tells them apart
    ([{"METHOD.NAME": "pgm", "METHOD.GRADIENTS": "exact"}, {"METHOD.SWAP_SCALE": 0.1}],
     ["METHOD.NAME pgm", "METHOD.NAME cclnet"]),
    ([{"METHOD.OWN": 2}, {}], ["METHOD.OWN 2", "METHOD.OWN –"]),
    ([{}, {"CLUSTER.K1": 30}, {"CLUSTER.K1": 20}], ["CLUSTER.K1 30", "CLUSTER.K1 30", "CLUSTER.K1 20"]),    # a default
    ([{"PSEUDO_LABEL": ""}, {"PSEUDO_LABEL": "x"}], ["PSEUDO_LABEL (not set)", "PSEUDO_LABEL x"])])
def test_which_runs_belong_together(changes, names):
    assert group_names(changes) == names


def test_what_a_grid_varied_tells_runs_apart(tmp_path):
    """Also a key that makes no other method elsewhere."""
    for device in ("cpu", "cuda"):
        record(tmp_path / device, DEVICE=device)
        (tmp_path / device / "experiment.json").write_text(json.dumps({"varied": {"DEVICE": device}}))
    assert [row.method for row in ours(tmp_path)] == ["DEVICE cpu", "DEVICE cuda"]


def test_only_tests_of_the_checkpoints_as_they_are_and_as_the_run_is_are_its_results(tmp_path):
    record(tmp_path / "a", seed=1)
    record(tmp_path / "b", seed=2)
    (tmp_path / "b/model_last.pth").write_text("trained again since")
    for number, tested in enumerate(({"TEST__TRIALS": 1}, {"INPUT__HEIGHT": 96}, {"PRECISION": "bf16"}), start=3):
        record(tmp_path / str(number), seed=number, tested=tested)
    record(tmp_path / "a", checkpoint="downloaded")     # another one in the folder
    assert [len(tests) for _, tests in summary.read_runs([tmp_path], "python")] == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("value", [float("nan"), "0.5", 37.5, True])
def test_a_number_that_no_test_writes_is_refused(tmp_path, value):
    record(tmp_path / "a", value)
    with pytest.raises(UserError, match="holds rank1 .*; expected a number from 0 to 1"):
        summary.read_runs([tmp_path], "python")


def test_a_run_among_whose_files_other_runs_lie_is_refused(tmp_path, capsys):
    record(tmp_path / "runs")
    record(tmp_path / "runs/seed1")
    with pytest.raises(UserError, match=r"runs is the folder of a run and holds others \(seed1\).* as in .*seed1$"):
        summary.read_runs([tmp_path / "runs"], "python")
    (tmp_path / "runs/seed1").rename(tmp_path / "runs/old-1")       # kept by --fresh
    assert [run.folder for run, _ in summary.read_runs([tmp_path / "runs"], "python")] == [tmp_path / "runs"]


def test_a_table_shows_what_was_logged(tmp_path, capsys):
    """Of the last epoch of the checkpoint's own stage; a number that only some runs have is left out."""
    for seed, share in ((1, 0.25), (2, 0.75)):
        folder = tmp_path / f"seed{seed}"
        record(folder, seed=seed)
        record(folder, seed=seed, checkpoint="prepare_last")
        lines = [{"stage": "prepare", "epoch": 1, "share": 0.1, "own": 1},
                 {"stage": "finetune", "epoch": 1, "share": 9},
                 {"stage": "finetune", "epoch": 2, "share": share, **({"own": 1} if seed == 1 else {})}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {row.stage: {name: found for (kind, name), found in row.numbers.items() if kind == "logged"}
            for row in ours(tmp_path, "share", "own")}
    assert rows == {"train_clip": {"share": pytest.approx((0.5, 0.125 ** 0.5))},
                    "train_prepare": {"share": (pytest.approx(0.1), 0.0), "own": (1, 0.0)}}
    words = ["table", str(tmp_path), "--logged", "share"]
    experiments.main(words)
    head, *lines = capsys.readouterr().out.splitlines()[1:]
    assert head.endswith("  share") and next(line for line in lines if "train_clip" in line).endswith("0.50 ± 0.35")
    experiments.main([*words, "--csv"])
    head, prepare, clip, *_ = csv.reader(capsys.readouterr().out.splitlines())
    assert head[-2:] == ["logged share", "logged share sd"] and clip[-2:] == ["0.5000", "0.3536"]
    with pytest.raises(UserError, match="--logged names shard, which is no number of all .* own, share"):
        experiments.main(["table", str(tmp_path), "--logged", "shard"])


def test_tables_of_what_does_not_compare(tmp_path):
    def refuses(sentence, *folders):
        with pytest.raises(UserError, match=sentence):
            experiments.main(["table", *map(str, folders)])

    refuses("names no folder")
    refuses("argument --published: invalid choice: 'ours'", tmp_path, "--published", "ours")
    refuses("nowhere is no folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refuses("empty holds no run", tmp_path / "empty")
    record(tmp_path / "a" / "1")
    record(tmp_path / "b" / "1", DATASET={"NAME": "llcm", "TRIAL": 1})
    refuses("is of the data set llcm, .* of sysu; expected one data set", tmp_path / "a", tmp_path / "b")
    record(tmp_path / "c" / "1", TEST={"TRIALS": 2}, tested={"TEST__TRIALS": 2})
    refuses("tested with TEST.TRIALS 2, .* with 10; their numbers do not compare", tmp_path / "a", tmp_path / "c")
    record(tmp_path / "d" / "1", images="others", seed=2)
    refuses("tested on images with the digest others", tmp_path / "a", tmp_path / "d")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    refuses("are runs of the same settings, seed and data", tmp_path / "a", tmp_path / "copy")
    shutil.rmtree(tmp_path / "a/1/tests")
    refuses("no test with protocol python was found in any run; missing: ", tmp_path / "a")
    with pytest.raises(UserError, match="choose one"):
        experiments.main(["table", "x", "--csv", "--latex"])


def test_slurm_gets_what_was_asked_for(monkeypatch, tmp_path):
    """With a stand-in for sbatch on the path: the script that submitit hands over."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", "echo Submitted batch job 77"), ("srun", "true"), ("squeue", "true")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    executor = schedule.slurm_executor(tmp_path / "jobs", "grid", "gpu", 2, 6, 1.5)
    [job] = schedule.submit(make_grid(None, ["OUTPUT_DIR", str(tmp_path / "runs")], [1]), executor)
    assert job.job_id == "77" and read_run(tmp_path / "runs/seed1").varied == {"SEED"}
    [script] = (tmp_path / "jobs").glob("*_submission.sh")
    text = script.read_text()
    for line in ("--partition=gpu", "--gpus-per-node=2", "--cpus-per-task=6", "--time=90", "--job-name=grid"):
        assert f"#SBATCH {line}\n" in text, line
    assert f"export PYTHONPATH={grid.REPOSITORY}" in text
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="this machine has none; run it where Slurm is installed"):
        schedule.slurm_executor(tmp_path, "x", None, 1, 1, 1)
