"""Runs that are killed, stopped or refused a disk, and what the same command makes of them afterwards."""
import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
import trees

import utils.checkpoint
from processor.run.folder import lock_folder
from tests.workers import Workers, script

IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}
EPOCHS = {"PREPARE__EPOCHS": 2, "PROMPT__EPOCHS": 2, "FINETUNE__EPOCHS": 2, "METHOD__CROSS_EPOCH": 1}
OF_THE_CLOCK = ("second", "memory", "gpu")      # parts of the names of numbers that no two runs share
# script -> after which line of its output it gets which signal, one run after the other
STRIKES = {"train_prepare": (("prepare 2/", signal.SIGUSR1),),
           "train_clip": (("finetune 2/", signal.SIGKILL),)}


@pytest.fixture(scope="module")
def words(tiny_clip_file, tmp_path_factory):
    """The words of a command line that writes to a folder."""
    data = trees.people_tree(tmp_path_factory.mktemp("people") / "data", ids=IDS)

    def of(folder, **changes):
        return scripts.settings(DATASET__ROOT=data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=folder,
                                **{**EPOCHS, **changes})
    return of


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of a run of all stages that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for name in ("train_prepare", "train_clip"):
        assert Workers(1, folder.parent, script, name, words(folder)).codes() == [0]
    return folder


@pytest.fixture
def here(monkeypatch):
    """Runs in this process, with what a test has patched: (script, words) -> exit code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scripts.without_report(monkeypatch)
    yield lambda script, words: scripts.call(scripts.load(script), words)
    torch.set_num_threads(threads)


def copy_of(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def numbers(folder):
    """metrics.jsonl without what the clock and the machine say."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(part in k for part in OF_THE_CLOCK)} for row in rows]


def same_tree(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_result(folder, expected, stages=("prepare", "model")):
    """Labels, weights and metrics are those of the other run, to the bit."""
    for path in (expected / "pseudo_labels").glob("*.npy"):
        np.testing.assert_array_equal(np.load(folder / "pseudo_labels" / path.name), np.load(path))
    for stage in stages:
        ours, theirs = (torch.load(f / f"{stage}_last.pth", weights_only=True) for f in (folder, expected))
        assert ours["epoch"] == theirs["epoch"] == 2
        for part in ("state_dict", "prompts", "metrics"):
            assert same_tree(ours.get(part, {}), theirs.get(part, {})), (stage, part)
    of_stages = {"prepare": {"prepare"}, "model": {"prompt", "finetune"}}
    rows = [[row for row in numbers(f) if any(row["stage"] in of_stages[stage] for stage in stages)]
            for f in (folder, expected)]
    assert rows[0] == rows[1] and len(rows[0]) == sum(2 * len(of_stages[stage]) for stage in stages)


def strike(number, name, words, line, out):
    """Start a script and send it a signal as soon as it has said a line: its exit code, and its last line."""
    run, end = Workers(1, out, script, name, words), time.monotonic() + 200
    while line not in run.said()[0]:
        assert time.monotonic() < end and run.processes[0].is_alive(), "the run ended before the moment to strike"
        time.sleep(0.001)
    os.kill(run.processes[0].pid, number)
    return run.codes()[0], run.said()[0].splitlines()[-1]


def test_kills_and_signals_in_every_stage_change_nothing(words, whole, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    folder.mkdir()
    (folder / ".prepare_last.pth.mine.partial").write_text("mine")
    (folder / ".prepare_last.pth.123.cclnet-partial").write_text("what a killed run has left")
    for name, strikes in STRIKES.items():
        for line, number in strikes:
            code, last = strike(number, name, words(folder), line, out)
            assert code == (-number if number == signal.SIGKILL else 128 + number)
            assert code < 0 or last == "stopped; the same command resumes with epoch 2 of prepare"
        run = Workers(1, out, script, name, words(folder))
        assert run.codes() == [0], run.said()
    log = (folder / "log.txt").read_text()
    assert all(f"{stage}: resuming with epoch" in log for stage in ("prepare", "finetune"))
    assert [path.name for path in folder.glob(".*partial")] == [".prepare_last.pth.mine.partial"]
    assert_same_result(folder, whole)


def test_a_living_run_holds_its_folder(tmp_path, here, words, capsys):
    with lock_folder(tmp_path / "run"):
        assert here("train_prepare", words(tmp_path / "run")) == 2
    assert "another run is writing to" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}


def test_finished_stage_is_not_run_twice(whole, words, tmp_path, here, capsys):
    folder = copy_of(whole, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth*")}
    for name in ("train_prepare", "train_clip"):
        assert here(name, words(folder)) == 0
        assert "epoch 2, the last one, was trained already; add --fresh to start over" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth*")} == before


def test_a_full_disk_is_a_sentence_and_loses_nothing(whole, words, tmp_path, here, capsys, monkeypatch):
    """The disk refuses all after the first epoch's state; with space again the run goes on."""
    folder = tmp_path / "run"

    def flush(handle, real=os.fsync):
        if list(folder.glob("*_last.pth")) and (folder / "prepare_state.pth").stat().st_size > 10 ** 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(utils.checkpoint.os, "fsync", flush)
        assert here("train_prepare", words(folder)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "No space left" in said and "free space" in said
    assert not list(folder.glob(".*partial"))
    assert here("train_prepare", words(folder)) == 0
    assert "prepare: resuming with epoch 2" in capsys.readouterr().out
    assert_same_result(folder, whole, ["prepare"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_is_one_line(number, words, tmp_path, here, capsys, monkeypatch):
    monkeypatch.setattr("processor.setup.open_banks", lambda *a: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert here("train_prepare", words(tmp_path / "run")) == 128 + number
    said = capsys.readouterr().err
    assert said.startswith("stopped; ") and said.count("\n") == 1 and not (tmp_path / "run").exists()
    assert signal.getsignal(number) is before
