"""Grids of runs: RegDB's trials on a miniature tree, and scripts of a second."""
import csv
import io
import json
import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import scripts
from trees import regdb_tree

from report.run_files import read_run
from tools import experiments
from tools.lib import schedule
from tools.lib.grid import REPOSITORY, Experiment, Step, make_grid
from utils.errors import SIGNALS, Stopped, UserError


def test_a_grid_from_training_to_table(tmp_path, tiny_clip_file, monkeypatch, capsys):
    """What is finished is not done again, what is missing is; a failed run does not stop the others."""
    root, runs = regdb_tree(tmp_path / "RegDB", persons=3, images=6), tmp_path / "runs"
    started = scripts.InThisProcess.started
    monkeypatch.setattr(schedule.subprocess, "Popen", scripts.InThisProcess)
    monkeypatch.setattr(schedule, "SECONDS", 0)
    settings = scripts.settings(DATASET__NAME="regdb", DATASET__ROOT=root, DATASET__CACHE_DIR=tmp_path / "cache",
                                OUTPUT_DIR=runs / "trial{trial}", MODEL__CLIP_WEIGHTS=tiny_clip_file, CLUSTER__K1=4,
                                CLUSTER__K2=2, CLUSTER__EPS=0.9, METHOD__CROSS_EPOCH=1)
    good, bad = (runs / f"CLUSTER.MIN_SAMPLES={least}-trial1" for least in (2, 25))

    def run(*words):
        """Run the grid: the scripts that were started, and what was printed."""
        started.clear()
        experiments.main(["run", "--trials", "1", "--vary", "CLUSTER.MIN_SAMPLES", "2", *words, *settings])
        return list(started), capsys.readouterr()

    with pytest.raises(UserError, match=f"1 of 2 runs failed: {bad.name}: train_prepare.py: all 18 rgb images are out"):
        run("25", "--only", "prepare")
    said = capsys.readouterr()
    assert started == ["train_prepare", "test", "test", "train_prepare"]
    assert "1 of 2 runs are finished" in said.out and f"failed: {bad}: train_prepare.py: all 18 rgb" in said.err
    done, said = run("--only", "prepare")
    assert done == [] and said.err == "no run of 1 is missing\n" and "train_clip" not in said.out.split("CCLNet,")[0]
    assert run()[0] == ["train_clip", "test", "test"]
    assert run("DATASET.CACHE", "mmap")[0] == []       # no other training
    (good / "prepare_last.pth").unlink()
    assert run()[0] == ["train_prepare"]       # the labels are the same, so train_clip has nothing to do
    [results] = good.glob("tests/model_last-python-both-*/metrics.json")
    next(good.glob("tests/prepare_best-*/metrics.json")).unlink()
    experiments.main(["table", str(good), str(runs)])
    said = capsys.readouterr()
    assert f"missing: {good} has no test of prepare_best\n" in said.err
    assert "71.94" in said.out and "README of the released code" in said.out and "50.02" not in said.out
    experiments.main(["table", str(runs), "--csv"])
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    ours = {(row["stage"], row["mode"]): row for row in table if not row["source"]}
    for record in json.loads(results.read_text())["results"]:
        found = float(ours["train_clip", record["mode"]]["last epoch mAP"])
        assert found == pytest.approx(100 * record["mAP"], abs=1e-4)
    np.save(next(good.glob("pseudo_labels/*_ir_*.npy")), np.arange(18))
    with pytest.raises(UserError, match=f"1 of 1 runs failed: {good.name}: train_clip.py: pseudo labels in .* are not"):
        run()


@pytest.mark.parametrize("words, sentence", [
    (["--seeds", "1", "--vary", "CLUSTER.EPZ", "1"], "unknown key CLUSTER.EPZ; did you mean CLUSTER.EPS"),
    (["--vary", "CLUSTER.EPS", "0.5", "7"], "sets CLUSTER.EPS to 7.0; expected a number from 0 to 1"),
    (["--vary", "CLUSTER.EPS", "0.5", "0.50"], "would have the same settings; give every value once"),
    (["--vary", "CLUSTER.EPS", "0.5", "0.5"], "would have the same settings; give every value once"),
    (["--vary", "MODEL.CLIP_WEIGHTS", "a/b.pt", "a_b.pt"], "two runs would have the folder MODEL.CLIP_WEIGHTS=a_b.pt-"),
    (["--seeds", "3-1"], "--seeds 3-1 names none"),
    (["--seeds", "1-999", "--vary", "CLUSTER.EPS", "0.5", "0.6"], "the grid has 1,998 runs; expected 1,000 at most"),
    (["--vary", "SEED", "1", "2", "--seeds", "1"], "the values of SEED are given twice"),
    (["--trials", "1", "DATASET.NAME", "llcm"], "--trials are the splits of RegDB; llcm has one")])
def test_wrong_grids_write_nothing(tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        experiments.main(["run", "DATASET.NAME", "regdb", "DATASET.ROOT", str(tmp_path), "OUTPUT_DIR",
                          str(tmp_path / "runs"), *words])
    assert not (tmp_path / "runs").exists()


def test_words_and_the_folders_of_their_runs():
    """Folders are named by what differs."""
    options = experiments.parse_arguments(["run", "--seeds", "2", "4-5", "SEED", "3", "--vary", "OPTIM.STEPS", "[1, 2]",
                                           "DEVICE", "cpu", "--trials", "1", "TEST.EVERY=2"])
    assert (options.seeds, options.trials, options.vary) == ([2, 4, 5], [1], [("OPTIM.STEPS", ["[1, 2]"])])
    assert options.overrides == ["SEED", "3", "TEST.EVERY=2", "DEVICE", "cpu"]
    runs = make_grid(None, [], [1, 2], varied=[*options.vary, ("MODEL.CLIP_WEIGHTS", ["a/b.pt"])])
    assert [str(e.folder) for e in runs] == [f"runs/sysu/OPTIM.STEPS=_1_2_-MODEL.CLIP_WEIGHTS=a_b.pt-seed{s}"
                                             for s in (1, 2)]
    assert [e.config.SEED for e in runs] == [1, 2] and runs[0].config.OPTIM.STEPS == [1, 2]
    runs = make_grid("configs/regdb.yml", ["OUTPUT_DIR", "x/t{trial}/y"], [3], [4, 5])
    assert [str(e.folder) for e in runs] == ["x/trial4-seed3", "x/trial5-seed3"]


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
(out.parent / "share").write_text(f"{os.environ.get('OMP_NUM_THREADS')} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
with open(out.parent / "starts", "a") as file:
    file.write(out.name + " ")
began = time.time()
time.sleep(SECONDS)
out.write_text(f"{began} {time.time()}")
"""


def two_scripts(folder, names, code=WORK, seconds="0.1"):
    return [Scripts(name, folder / name, {}, None, (), code=code.replace("SECONDS", seconds)) for name in names]


def wait_for(*paths):
    """Wait until files are there, a minute at most."""
    deadline = time.time() + 60
    while not all(path.exists() for path in paths) and time.time() < deadline:
        time.sleep(0.05)


def test_runs_at_the_same_time_share_threads_and_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule.torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(schedule, "SECONDS", 0.02)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert schedule.run_here(two_scripts(tmp_path, "abc", seconds="0.2"), at_once=2) == []
    began, ended = zip(*(map(float, (tmp_path / name / script).read_text().split())
                         for name in "abc" for script in ("first", "second")))
    assert max(sum(b <= now < e for b, e in zip(began, ended)) for now in began) == 2       # and never more
    a, b, c = ((tmp_path / name / "share").read_text() for name in "abc")
    assert (a, b) == ("2 3", "2 5") and c in (a, b)
    assert [(tmp_path / name / "starts").read_text() for name in "abc"] == ["first second "] * 3


def test_a_signal_ends_the_scripts_and_the_grid_resumes(tmp_path):
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    threading.Thread(target=lambda: (wait_for(*(tmp_path / name / "starts" for name in "ab")), time.sleep(0.2),
                                     os.kill(os.getpid(), signal.SIGUSR1))).start()
    with pytest.raises(Stopped, match="the same command resumes") as stop:
        schedule.run_here(two_scripts(tmp_path, "abc", seconds="60"), at_once=2)
    for each, handler in handlers.items():
        signal.signal(each, handler)
    assert stop.value.exit_code == 128 + signal.SIGUSR1
    (tmp_path / "a" / "first").write_text("done earlier")
    assert schedule.run_here(two_scripts(tmp_path, "abc"), at_once=3) == []
    assert (tmp_path / "a" / "starts").read_text() == "first second "        # first before, second now
    assert (tmp_path / "b" / "starts").read_text() == "first first second "
    assert (tmp_path / "c" / "starts").read_text() == "first second "


def test_failures_are_listed_with_their_sentence(tmp_path):
    known = {"raise ValueError('a defect')": "first: ValueError: a defect (see ",
             "import os, sys; os.kill(os.getpid(), 9)": "first was ended by signal 9; was memory exhausted?",
             "import sys; print('error: a mistake', file=sys.stderr); sys.exit(2)": "first: a mistake",
             "pass": "first ended without an error and left its work undone"}
    bad = [run for name, code in zip("abcd", known) for run in two_scripts(tmp_path, name, code)]
    failed = dict(schedule.run_here([*bad, *two_scripts(tmp_path, ["good"])], at_once=3))
    for run, sentence in zip(bad, known.values()):
        assert failed[run.name].startswith(sentence) and read_run(run.folder).grid["error"] == failed[run.name]
    assert len(failed) == 4 and read_run(tmp_path / "good").grid["error"] == ""


def test_a_job_whose_time_is_over_is_queued_again_and_resumes(tmp_path):
    """Submitit asks the job what is to be queued, and keeps that in a file."""
    [run] = two_scripts(tmp_path, "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "first").write_text("done earlier")
    assert pickle.loads(pickle.dumps(schedule.Job(run).checkpoint().function))() == ""
    assert (run.folder / "starts").read_text() == "second "


def test_slurm_gets_what_was_asked_for(monkeypatch, tmp_path, capsys):
    """With a stand-in for sbatch on the path: the script that submitit hands over."""
    root, runs = regdb_tree(tmp_path / "RegDB"), tmp_path / "runs"
    words = ["run", "--cluster", "slurm", "--partition", "gpu", "--gpus", "2", "--cpus", "6", "--hours", "1.5",
             *scripts.settings(DATASET__NAME="regdb", DATASET__ROOT=root, OUTPUT_DIR=runs)]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="this machine has none; run it where Slurm is installed"):
        experiments.main(words)
    assert not runs.exists()
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", "echo Submitted batch job 77"), ("srun", "true"), ("squeue", "true")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    experiments.main(words)
    assert "seed1: job 77" in capsys.readouterr().out and read_run(runs / "seed1").varied == {"SEED"}
    [script] = (runs / "jobs").glob("*_submission.sh")
    text = script.read_text()
    for line in ("--partition=gpu", "--gpus-per-node=2", "--cpus-per-task=6", "--time=90", "--job-name=runs"):
        assert f"#SBATCH {line}\n" in text, line
    assert f"export PYTHONPATH={REPOSITORY}:" in text
