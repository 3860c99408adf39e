"""Runs that are killed, stopped or refused a disk, and what the same command makes of them afterwards."""
import errno
import os
import shutil
import signal

import numpy as np
import pytest
import scripts
import torch

import processor.train
import utils.checkpoint
from processor.run.folder import lock_folder, read_rows

OF_THE_CLOCK = ("second", "memory", "gpu")      # parts of the names of numbers that no two runs share


@pytest.fixture(scope="module")
def here(finished, tiny_clip_file):
    """Runs a script of two epochs of two steps a stage in this process, in a folder: the exit code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        scripts.without_report(patch)
        yield lambda name, folder: scripts.call(scripts.load(name), scripts.settings(
            DATASET__ROOT=finished / "data", MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=folder, PREPARE__EPOCHS=2,
            PROMPT__EPOCHS=2, FINETUNE__EPOCHS=2, METHOD__CROSS_EPOCH=1, SAMPLER__ITERATIONS=2))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(here, tmp_path_factory):
    """"whole": the folder of a run that nothing interrupted; stage: what a kill in its second epoch leaves of it."""
    def step(*arguments, real=processor.train.train_step):
        steps.append(1)
        if len(steps) in (3, 7):        # the first step of the second epoch
            stage = "prepare" if len(steps) == 3 else "finetune"
            folders[stage] = shutil.copytree(folders["whole"], folders["whole"].with_name(stage))
        return real(*arguments)

    steps, folders = [], {"whole": tmp_path_factory.mktemp("runs") / "whole"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor.train, "train_step", step)
        assert [here(name, folders["whole"]) for name in ("train_prepare", "train_clip")] == [0, 0]
    return folders


def same_tree(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def result(folder, stages):
    """What a run has made: labels, and of stages the weights, metrics, and rows of metrics.jsonl without the clock."""
    found = {"rows": [{k: v for k, v in row.items() if not any(part in k for part in OF_THE_CLOCK)}
                      for row in read_rows(folder) if row["stage"] in stages]}
    found |= {path.name: torch.from_numpy(np.load(path)) for path in (folder / "pseudo_labels").glob("*.npy")}
    content = torch.load(folder / f"{'prepare' if 'prepare' in stages else 'model'}_last.pth", weights_only=True)
    return found | {part: content.get(part) for part in ("epoch", "state_dict", "prompts", "metrics")}


@pytest.mark.parametrize("script, stages", [("train_prepare", ["prepare"]), ("train_clip", ["prompt", "finetune"])])
def test_what_interrupts_a_stage_changes_nothing(script, stages, here, runs, tmp_path, capsys, monkeypatch):
    """Killed in the second epoch, then stopped there, then refused the disk at its end."""
    refused = []

    def fsync(handle, real=os.fsync):
        if os.fstat(handle).st_size > 10 ** 5:
            refused.append(handle)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    folder = shutil.copytree(runs[stages[-1]], tmp_path / "run")
    (folder / ".prepare_last.pth.mine.partial").write_text("mine")
    (folder / ".prepare_last.pth.123.cclnet-partial").write_text("what a killed run has left")
    with monkeypatch.context() as patch:
        patch.setattr(processor.train, "train_step", lambda *_: signal.raise_signal(signal.SIGUSR1))
        assert here(script, folder) == 128 + signal.SIGUSR1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"stopped; the same command resumes with epoch 2 of {stages[-1]}"
    with monkeypatch.context() as patch:
        patch.setattr(utils.checkpoint.os, "fsync", fsync)
        assert here(script, folder) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "No space left" in said and "free space" in said
    assert here(script, folder) == 0 and len(refused) == 1      # nothing was written after the best checkpoint
    assert f"{stages[-1]}: resuming with epoch 2" in capsys.readouterr().out
    assert [path.name for path in folder.glob(".*partial")] == [".prepare_last.pth.mine.partial"]
    found, expected = result(folder, stages), result(runs["whole"], stages)
    assert len(found["rows"]) == 2 * len(stages) and len(found) == 7 and found["epoch"] == 2
    assert same_tree(found, expected)


def test_a_living_run_holds_its_folder(tmp_path, here, capsys):
    with lock_folder(tmp_path / "run"):
        assert here("train_prepare", tmp_path / "run") == 2
    assert "another run is writing to" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}


def test_finished_stage_is_not_run_twice(runs, here, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in runs["whole"].glob("*.pth*")}
    for name in ("train_prepare", "train_clip"):
        assert here(name, runs["whole"]) == 0
        assert "epoch 2, the last one, was trained already; add --fresh to start over" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in runs["whole"].glob("*.pth*")} == before


def test_a_signal_before_training_is_one_line(tmp_path, here, capsys, monkeypatch):
    monkeypatch.setattr("processor.setup.open_banks", lambda *a: signal.raise_signal(signal.SIGINT))
    assert here("train_prepare", tmp_path / "run") == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert said.startswith("stopped; ") and said.count("\n") == 1 and not (tmp_path / "run").exists()
