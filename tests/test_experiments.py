"""Grids of runs: RegDB's trials on a miniature tree, and scripts of a second."""
import contextlib
import csv
import io
import json
import os
import runpy
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

from report.run_files import read_run
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
            patch.setattr("report.write.save_report", lambda *_, **__: None)
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
        assert (row["n"], row["method"]) == ("2", "cclnet")
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
