"""Files that are not ours are neither replaced nor followed; what is started over takes along what was made from it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
import trees

import utils.errors
from processor.run.resume import lock_folder
from utils.checkpoint import write_atomically
from utils.errors import exit_on_user_error, is_out_of_memory
from utils.runtime import unused_gpu_warning

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path, tiny_clip_file, monkeypatch, capsys):
    """A small data set and a folder to train in."""
    scripts.without_report(monkeypatch)

    class Place:
        data = trees.people_tree(tmp_path / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
        run, mine = tmp_path / "run", tmp_path / "mine.txt"

        def start(self, script, *flags, **changes):
            words = scripts.settings(DATASET__ROOT=self.data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=self.run,
                                     **changes)
            code = scripts.call(scripts.load(script), [*flags, *words])
            said = capsys.readouterr()
            return code, said.out + said.err

    Place.mine.write_text("mine")
    return Place()


@pytest.mark.parametrize("name", [".lock", "log.txt", "config.yml", "prepare_state.pth", "prepare_last.pth",
                                  "pseudo_labels"])
def test_symbolic_links_in_the_output_folder_are_not_followed(place, name):
    place.run.mkdir()
    (place.run / name).symlink_to(place.mine)
    code, said = place.start("train_prepare")
    assert code == 2 and f"{name} is a symbolic link; expected a" in said and "Traceback" not in said
    assert place.mine.read_text() == "mine"


@pytest.mark.parametrize("name, make, found", [
    ("log.txt", lambda path: path.mkdir(), "a folder"), ("prepare_best.pth", lambda path: path.mkdir(), "a folder"),
    ("metrics.jsonl", os.mkfifo, "neither file nor folder"), ("tensorboard", Path.touch, "a file")])
def test_obstacles_in_the_output_folder(place, name, make, found):
    place.run.mkdir()
    make(place.run / name)
    code, said = place.start("train_prepare")
    assert code == 2 and f"{name} is {found}; expected a" in said and "choose another OUTPUT_DIR" in said
    assert {path.name for path in place.run.iterdir()} == {name}


@pytest.mark.parametrize("name, make", [
    ("pseudo_labels/manifest.json", Path.mkdir), ("report_data/prepare.json", os.mkfifo),
    ("tensorboard/prepare", os.mkfifo), ("tests/x/metrics.json", Path.mkdir),
    ("tests", lambda path: path.symlink_to(path.parent.parent))])
def test_obstacles_below_the_output_folder(place, name, make):
    (place.run / name).parent.mkdir(parents=True, exist_ok=True)
    make(place.run / name)
    for script in ("train_prepare", "test"):
        code, said = place.start(script)
        assert code == 2 and f"{name} is " in said and said.count("\n") <= 5 and "choose another OUTPUT_DIR" in said
        assert not (place.run / "log.txt").exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_is_not_replaced_by_a_file(make, tmp_path):
    make(tmp_path / "mine")
    with pytest.raises(utils.errors.UserError, match="mine is (a folder|neither file nor folder); expected a file or"):
        write_atomically(tmp_path / "mine", lambda file: file.write(b"ours"))


def test_a_test_does_not_mix_with_one_that_is_running(place):
    assert place.start("train_prepare")[0] == 0
    folder = place.run / "tests/baseline_clip-python-all"
    with lock_folder(folder):
        code, said = place.start("test")
    assert code == 2 and "another run is writing to" in said and not (folder / "metrics.json").exists()
    assert place.start("test")[0] == 0


@pytest.mark.parametrize("name", [".cache.lock", "train_rgb_resized_img.partial"])
def test_symbolic_links_beside_the_cache(place, name):
    (place.data / name).symlink_to(place.mine)
    code, said = place.start("train_prepare")
    assert place.mine.read_text() == "mine" and "Traceback" not in said
    assert code == (2 if name == ".cache.lock" else 0)


def test_arrays_of_another_codebase_are_not_replaced(place):
    foreign = place.data / "train_rgb_resized_img.npy"
    np.save(foreign, np.zeros((3, 8, 4, 3), np.uint8))
    before = foreign.read_bytes()
    code, said = place.start("train_prepare")
    assert code == 2 and "is not from here" in said and "DATASET.CACHE_DIR" in said
    assert foreign.read_bytes() == before
    code, said = place.start("train_prepare", DATASET__CACHE_DIR=place.run / "cache")
    assert code == 0 and foreign.read_bytes() == before


def test_a_cache_that_was_cut_short_is_made_again(place):
    assert place.start("train_prepare")[0] == 0
    manifest = place.data / "train_rgb_resized_manifest.json"
    manifest.write_text('{"unfinished": true}')
    (place.data / "train_rgb_resized_label.npy").unlink()
    assert place.start("test")[0] == 0
    assert place.start("train_prepare", "--fresh")[0] == 0
    assert "sha256" in json.loads(manifest.read_text()) and (place.data / "train_rgb_resized_label.npy").is_file()


@pytest.mark.parametrize("text, sentence", [("{", "cannot be read"), ("[1]\n", "line 1 of"), ("{}\n", "line 1 of"),
                                            ('{"stage": "prepare", "epoch": 1}\nnull\n', "line 2 of"),
                                            (b"\xff\xfe", "cannot be read")])
def test_damaged_metrics_are_found_before_training(place, text, sentence):
    place.run.mkdir()
    path = place.run / "metrics.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    code, said = place.start("train_prepare")
    assert code == 2 and sentence in said and "--fresh" in said
    assert path.read_bytes() == before and not (place.run / "prepare_last.pth").exists()
    assert place.start("train_prepare", "--fresh")[0] == 0
    assert (place.run / "old-1/metrics.jsonl").read_bytes() == before


def test_fresh_takes_along_what_was_made_from_the_old_stage(place):
    assert place.start("train_prepare")[0] == place.start("train_clip")[0] == 0
    assert place.start("test", "--resume_path", place.run / "model_last.pth")[0] == 0
    old = {name: (place.run / name).read_bytes() for name in ("prepare_last.pth", "model_last.pth", "metrics.jsonl")}

    assert place.start("train_clip", "--fresh")[0] == 0
    aside = place.run / "old-1"
    assert (aside / "model_last.pth").read_bytes() == old["model_last.pth"]
    assert (aside / "metrics.jsonl").read_bytes() == old["metrics.jsonl"] and (aside / "config.yml").is_file()
    assert (aside / "tests/model_last-python-all/metrics.json").is_file()
    assert not (aside / "prepare_last.pth").exists() and (place.run / "prepare_last.pth").is_file()
    stages = [json.loads(line)["stage"] for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["prepare", "prompt", "finetune"]

    code, said = place.start("train_prepare", "--fresh", SEED=2)
    assert code == 0 and f"old files are kept in {place.run / 'old-2'}" in said
    assert {path.name for path in (place.run / "old-2").iterdir()} >= {
        "prepare_last.pth", "prepare_state.pth", "pseudo_labels", "model_last.pth", "clip_state.pth", "metrics.jsonl",
        "config.yml", "tensorboard"}
    assert not list(place.run.glob("model_*")) and not list(place.run.glob("tests/*"))
    code, said = place.start("train_clip", SEED=2)
    assert code == 0 and torch.load(place.run / "model_last.pth", weights_only=True)["config"]["SEED"] == 2


def test_a_test_replaces_nothing_of_a_training_run(place):
    assert place.start("train_prepare")[0] == 0
    before = {path: path.read_bytes() for path in place.run.glob("*") if path.is_file()}
    assert place.start("test", "--resume_path", place.run / "prepare_last.pth", TEST__MODE="both")[0] == 0
    assert place.start("test")[0] == 0
    assert {path: path.read_bytes() for path in place.run.glob("*") if path.is_file()} == before
    assert {path.name for path in (place.run / "tests").iterdir()} == {"prepare_last-python-both",
                                                                      "baseline_clip-python-all"}


@pytest.mark.parametrize("error, expected", [
    (MemoryError(), True), (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate "
                                         "memory: you tried to allocate 8 bytes"), True),
    (RuntimeError("could not create a primitive"), True), (torch.OutOfMemoryError("CUDA out of memory."), True),
    (OSError(12, "Cannot allocate memory"), True), (RuntimeError("size mismatch"), False), (KeyError("x"), False),
    (OSError(2, "no such file"), False)])
def test_out_of_memory_in_any_form(error, expected, capsys):
    assert is_out_of_memory(error) == expected

    def main():
        raise error

    if expected:
        with pytest.raises(SystemExit) as end:
            exit_on_user_error(main)
        assert end.value.code == 2 and capsys.readouterr().err.startswith("error: memory is exhausted (")


@pytest.mark.parametrize("load", ["load_checkpoint", "load_clip"])
def test_a_file_is_not_blamed_for_missing_memory(load, tmp_path, monkeypatch):
    from model.clip import load_clip
    from model.published import load_checkpoint
    path = tmp_path / "whole.pth"
    torch.save({}, path)
    monkeypatch.setattr(torch, "load", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")))
    with pytest.raises(RuntimeError, match="bad_alloc") as caught:
        {"load_checkpoint": load_checkpoint, "load_clip": load_clip}[load](str(path))
    assert not isinstance(caught.value, utils.errors.UserError)


def test_a_console_that_is_gone_or_plain_does_not_end_a_run(tmp_path):
    program = ("import sys; sys.path.insert(0, {!r})\nfrom utils.runtime import open_log\nlog = open_log({!r}, 't')\n"
               "for number in range(2000): log.info(f'line {{number}} \u2248 \u2212')")
    for name, environment in (("closed", {}), ("plain", {"PYTHONIOENCODING": "ascii"})):
        words = [sys.executable, "-c", program.format(str(ROOT), str(tmp_path / name))]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, **environment})
        if name == "closed":
            process.stdout.readline()
            process.stdout.close()
            error = process.stderr.read()
        else:
            out, error = process.communicate()
            assert out.count(b"line ") == 2000 and b"?" in out
        assert process.wait() == 0 and b"Traceback" not in error, error
        assert (tmp_path / name / "log.txt").read_text(encoding="utf-8").count("\u2248") == 2000


def test_a_gpu_that_torch_cannot_use_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unused_gpu_warning(tmp_path) is None
    (tmp_path / "nvidia0").touch()
    assert "cannot use it; update the driver" in unused_gpu_warning(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_gpu_warning(tmp_path) is None
