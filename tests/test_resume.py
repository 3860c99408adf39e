"""Runs that are killed, stopped or refused a disk, and what the same command makes of them afterwards."""
import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
import trees
from forks import Forks

import utils.checkpoint
from processor.run.resume import StateFile

IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}
EPOCHS = {"PREPARE__EPOCHS": 3, "PROMPT__EPOCHS": 3, "FINETUNE__EPOCHS": 3}
OF_THE_CLOCK = ("second", "memory", "gpu")      # parts of the names of numbers that no two runs share
# script, the line of the log to wait for, whether to strike while a file is being written
KILLS = [("train_prepare", "", False), ("train_prepare", "", True), ("train_prepare", "prepare 1/", False),
         ("train_prepare", "prepare 2/", True), ("train_clip", "", True), ("train_clip", "prompt 1/", False),
         ("train_clip", "prompt 3/", True), ("train_clip", "prompt 3/", False), ("train_clip", "finetune 1/", True),
         ("train_clip", "finetune 2/", False)]


@pytest.fixture(scope="module")
def forks():
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("people") / "data", ids=IDS)


@pytest.fixture(scope="module")
def words(data, tiny_clip_file):
    """The words of a command line that writes to a folder."""
    def of(folder, **changes):
        return scripts.settings(DATASET__ROOT=data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=folder,
                                **{**EPOCHS, **changes})
    return of


@pytest.fixture(scope="module")
def whole(forks, words, tmp_path_factory):
    """The folder of a run of all stages that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for script in ("train_prepare", "train_clip"):
        assert forks.run(script, words(folder), folder.with_name(f"{script}.out")) == 0
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
        assert ours["epoch"] == theirs["epoch"] == 3
        for part in ("state_dict", "prompts", "metrics"):
            assert same_tree(ours.get(part, {}), theirs.get(part, {})), (stage, part)
    names = {"prepare": {"prepare"}, "model": {"prompt", "finetune"}}
    of_stages = set().union(*(names[stage] for stage in stages))
    assert [r for r in numbers(folder) if r["stage"] in of_stages] == [r for r in numbers(expected)
                                                                       if r["stage"] in of_stages]


def wait_for(condition, forks, pid, seconds=60):
    """Wait for a condition while a process lives; fails if either takes its end."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and forks.is_alive(pid), "the run ended before the moment to strike"
        time.sleep(0.001)


def strike(forks, pid, folder, line, in_a_write, rng):
    """SIGKILL at a random moment after a line of the log; in_a_write: while a temporary file is there."""
    log = folder / "log.txt"
    wait_for(lambda: line in (log.read_text() if log.is_file() else ""), forks, pid)
    time.sleep(rng.uniform(0, 0.2))
    if in_a_write:
        wait_for(lambda: any(folder.glob(".*.partial")), forks, pid)
    os.kill(pid, signal.SIGKILL)
    assert forks.wait(pid) == -signal.SIGKILL


def test_ten_kills_change_nothing(forks, words, whole, tmp_path):
    rng, folder, struck = random.Random(0), tmp_path / "run", 0
    often = words(folder, CHECKPOINT__MINUTES=0)          # a state after every iteration
    for script in ("train_prepare", "train_clip"):
        for _, line, in_a_write in (kill for kill in KILLS if kill[0] == script):
            strike(forks, forks.start(script, often, tmp_path / "out"), folder, line, in_a_write, rng)
            struck += 1
        assert forks.run(script, often, tmp_path / "out") == 0, (tmp_path / "out").read_text()
    assert struck == 10 and "resuming with epoch" in (folder / "log.txt").read_text()
    assert not list(folder.glob(".*.partial"))            # what killed writes left is gone
    assert_same_result(folder, whole)


def test_sigterm_saves_and_a_living_run_holds_its_folder(forks, words, whole, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    pid = forks.start("train_prepare", words(folder), out)
    wait_for(lambda: "prepare 1/" in ((folder / "log.txt").read_text() if (folder / "log.txt").is_file() else ""),
             forks, pid)
    os.kill(pid, signal.SIGSTOP)
    assert forks.run("train_prepare", words(folder), tmp_path / "second") == 2
    assert "another run is writing to" in (tmp_path / "second").read_text()
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 128 + signal.SIGTERM
    assert out.read_text().splitlines()[-1].startswith("stopped; the same command resumes from")
    assert forks.run("train_prepare", words(folder), out) == 0
    assert_same_result(folder, whole, ["prepare"])


def test_finished_stage_is_not_run_twice(whole, words, tmp_path, here, capsys):
    folder = copy_of(whole, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth*")}
    for script in ("train_prepare", "train_clip"):
        assert here(script, words(folder)) == 0
        assert "all 3 epochs were trained already; add --fresh to start over" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth*")} == before


def test_fresh_keeps_the_old_run_aside(whole, words, tmp_path, here, capsys):
    folder = copy_of(whole, tmp_path)
    old = (folder / "prepare_last.pth").read_bytes()
    assert here("train_prepare", [*words(folder, PREPARE__EPOCHS=1, SEED=2), "--fresh"]) == 0
    assert f"old files are kept in {folder / 'old-1'}" in capsys.readouterr().out
    assert (folder / "old-1" / "prepare_last.pth").read_bytes() == old
    assert (folder / "old-1" / "pseudo_labels" / "train_rgb_resized_pseudo_label.npy").is_file()
    assert torch.load(folder / "prepare_last.pth", weights_only=True)["config"]["SEED"] == 2
    assert (folder / "old-1" / "model_last.pth").is_file() and not (folder / "model_last.pth").exists()


def test_damaged_newest_state(whole, words, tmp_path, here, capsys):
    folder = copy_of(whole, tmp_path)
    state = folder / "prepare_state.pth"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1                       # one bit
    state.write_bytes(content)
    assert here("train_prepare", words(folder)) == 0
    said = capsys.readouterr().out
    assert f"warning: {state} is damaged; resuming from {state}.previous" in said
    assert "prepare: resuming with epoch 3" in said
    assert_same_result(folder, whole, ["prepare"])


def test_more_epochs_may_be_asked_for(whole, words, tmp_path, here, capsys):
    folder = copy_of(whole, tmp_path)
    assert here("train_prepare", words(folder, PREPARE__EPOCHS=4, TEST__EVERY=1)) == 0
    said = capsys.readouterr().out
    assert "resuming with PREPARE.EPOCHS 4 instead of 3" in said and "prepare: resuming with epoch 4" in said


@pytest.mark.parametrize("number, sentence", [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only")])
@pytest.mark.parametrize("writes", [6, 8])
def test_refused_writes_leave_the_last_state(number, sentence, writes, whole, words, tmp_path, here, capsys,
                                             monkeypatch):
    """The disk takes some files, then no more: a sentence; with space again the run goes on."""
    folder, left = tmp_path / "run", iter(range(writes))

    def flush(handle, real=os.fsync):
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(utils.checkpoint.os, "fsync", flush)
        assert here("train_prepare", words(folder, CHECKPOINT__MINUTES=0)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and sentence in said and "free space" in said
    content, warning = StateFile(folder / "prepare_state.pth").load()
    assert content["stages"]["prepare"]["epoch"] == 1 and warning is None
    assert not list(folder.glob(".*.partial"))
    assert here("train_prepare", words(folder)) == 0
    assert_same_result(folder, whole, ["prepare"])


def test_state_file_is_there_at_every_moment(tmp_path, monkeypatch):
    """Whichever rename a run dies before, a whole state is found."""
    state = StateFile(tmp_path / "state.pth")
    state.save({"step": 1})
    state.save({"step": 2})
    for renames in (0, 1):
        calls = iter(range(renames))

        def replace(*names, calls=calls, real=os.replace):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            real(*names)

        with monkeypatch.context() as patch:
            patch.setattr(utils.checkpoint.os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                state.save({"step": 3})
        assert state.load() == ({"step": 2}, None)


def test_ctrl_c_before_training_is_one_line(words, tmp_path, here, capsys, monkeypatch):
    monkeypatch.setattr("processor.setup.open_bank", lambda *a: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background job ignores it
    try:
        assert here("train_prepare", words(tmp_path / "run")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith("stopped at once;") and not (tmp_path / "run").exists()
