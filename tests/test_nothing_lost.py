"""Files that are not ours are neither replaced nor followed; what is started over takes along what was made from it."""
import json
import shutil

import numpy as np
import pytest
import scripts
import trees

from configs.identity import results_folder
from processor.run.folder import lock_folder
from report.run_files import read_run
from tests.tested import add_test
from utils.checkpoint import write_atomically
from utils.errors import UserError


@pytest.fixture
def trained(finished):
    """The folder of a run of both scripts."""
    return finished / "run"


@pytest.fixture
def place(tmp_path, tiny_clip_file, monkeypatch, capsys):
    """A small data set and a folder to train in."""
    scripts.without_report(monkeypatch)

    class Place:
        data = trees.people_tree(tmp_path / "data", ids={"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)})
        run = tmp_path / "run"

        def start(self, script, *flags, **changes):
            words = scripts.settings(DATASET__ROOT=self.data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=self.run,
                                     **changes)
            code = scripts.call(scripts.load(script), [*flags, *words])
            said = capsys.readouterr()
            return code, " ".join((said.out + said.err).split())

    return Place()


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine cannot be written .Is a directory.; "):
        write_atomically(tmp_path / "mine", lambda file: file.write(b"ours"))


def test_arrays_of_another_codebase_are_not_replaced(place):
    foreign = place.data / "train_rgb_resized_img.npy"
    np.save(foreign, np.zeros((3, 8, 4, 3), np.uint8))
    before = foreign.read_bytes()
    code, said = place.start("train_prepare")
    assert code == 2 and "is not from here" in said and "DATASET.CACHE_DIR" in said
    assert foreign.read_bytes() == before


def test_fresh_takes_along_what_was_made_from_the_old_stage(place, trained):
    shutil.copytree(trained, place.run, ignore=shutil.ignore_patterns("tests"))
    add_test(place.run, 0.5)
    old = {name: (place.run / name).read_bytes() for name in ("prepare_last.pth", "model_last.pth", "metrics.jsonl")}

    assert place.start("train_clip", "--fresh")[0] == 0
    aside = place.run / "old-1"
    assert (aside / "model_last.pth").read_bytes() == old["model_last.pth"]
    assert (aside / "metrics.jsonl").read_bytes() == old["metrics.jsonl"] and (aside / "config.yml").is_file()
    assert list(aside.glob("tests/model_last*/metrics.json"))
    assert not (aside / "prepare_last.pth").exists() and (place.run / "prepare_last.pth").is_file()
    stages = [json.loads(line)["stage"] for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["prepare", "prompt", "finetune"]


def test_a_test_replaces_nothing_of_a_training_run_and_does_not_mix_with_a_running_one(place, trained):
    shutil.copytree(trained, place.run, ignore=shutil.ignore_patterns("tests"))
    before = {path: path.read_bytes() for path in place.run.glob("*") if path.is_file()}
    tests = (["--resume_path", place.run / "prepare_last.pth"], [])
    assert [place.start("test", *words)[0] for words in tests] == [0, 0]
    results = {path: path.read_bytes() for path in place.run.rglob("metrics.json")}
    assert len(results) == 2
    with lock_folder(next(path.parent for path in results if "baseline" not in str(path))):
        assert [place.start("test", *words)[0] for words in tests] == [2, 0]
    assert {path: path.read_bytes() for path in place.run.glob("*") if path.is_file()} == before


@pytest.mark.parametrize("changes", [{}, {"PRECISION": "bf16"}, {"TEST__MODE": "indoor"}])
def test_a_result_is_replaced_only_by_the_same_test(place, trained, changes):
    """It lies beside the checkpoint, whatever OUTPUT_DIR says."""
    path = trained / "model_last.pth"
    before = {path: path.read_bytes() for path in trained.glob("tests/model_last-*/metrics.json")}
    code, said = place.start("test", "--resume_path", path, **changes)
    assert code == 0 and not place.run.exists()
    after = {path: path.read_bytes() for path in trained.glob("tests/model_last-*/metrics.json")}
    assert after.items() >= before.items()
    assert len(after) - len(before) == (1 if changes or not before else 0)


def test_other_galleries_are_another_test(place, trained):
    before = set(trained.glob("tests/model_last-*/metrics.json"))
    for trials in (2, 3):        # each file draws others
        trees.permutation_file(place.data, trials, persons=7)
        assert place.start("test", "--resume_path", trained / "model_last.pth", TEST__PROTOCOL="original-1")[0] == 0
    assert len(set(trained.glob("tests/model_last-*/metrics.json")) - before) == 2


@pytest.mark.parametrize("key, before, now", [("INPUT__NORMALISATION", "imagenet", "half"), ("INPUT__HEIGHT", 32, 48)])
def test_images_of_another_kind_than_the_checkpoint_was_trained_on_are_refused(place, trained, key, before, now):
    code, said = place.start("test", "--resume_path", trained / "model_last.pth", **{key: now})
    assert code == 2 and f"was trained with {key.replace('__', '.')} {before}, now it is {now}" in said


def test_results_of_a_model_on_a_hub_are_not_those_of_the_run_in_output_dir(tmp_path):
    made, checkpoint = add_test(tmp_path, 0.5), "hf://lab/x/model_last.safetensors"
    tested = json.loads(made.read_text())["identity"]
    assert [test.of for test in read_run(tmp_path).tests] == ["model_last"]
    results_folder(tmp_path, checkpoint, tested).parent.mkdir()
    shutil.move(made.parent, results_folder(tmp_path, checkpoint, tested))
    assert not read_run(tmp_path).tests and list(tmp_path.glob("tests/elsewhere/model_last-*/metrics.json"))


def test_train_clip_refuses_labels_that_its_train_prepare_would_not_make(place, trained):
    """Of another method, seed or epoch, or before they are there; PSEUDO_LABEL_DIR takes them all the same."""
    shutil.copytree(trained / "pseudo_labels", place.run / "pseudo_labels")
    for changes, named in (({"METHOD__NAME": "pgm"}, "METHOD.NAME cclnet, not pgm"), ({"SEED": 2}, "SEED 1, not 2"),
                           ({"PREPARE__EPOCHS": 2}, "PREPARE.EPOCHS 1, not 2")):
        code, said = place.start("train_clip", **changes)
        assert code == 2 and f"were made with {named}" in said and not (place.run / "config.yml").exists()
    code, said = place.start("train_clip", SEED=2, PSEUDO_LABEL_DIR=place.run / "pseudo_labels")
    assert code == 0 and "cclnet, seed 1, epoch 1" in said
    shutil.rmtree(place.run)
    shutil.copytree(trained / "pseudo_labels", place.data / "pseudo_labels")
    place.run.mkdir()
    (place.run / "prepare_last.pth").write_bytes(b"of an unfinished run")
    code, said = place.start("train_clip")
    assert code == 2 and "train_prepare.py has not finished" in said


@pytest.mark.parametrize("script, name", [("train_prepare", "prepare_last.pth"), ("train_prepare", "pseudo_labels"),
                                          ("train_clip", "model_best.pth")])
def test_what_no_state_tells_of_is_not_trained_over(place, trained, script, name):
    """A run whose state is lost, labels that were downloaded, a checkpoint from elsewhere."""
    shutil.copytree(trained, place.run, ignore=shutil.ignore_patterns("tests"))
    for path in [*place.run.glob("*_state.pth*"), place.run / "metrics.jsonl"]:
        path.unlink()
    for other in ("prepare_last.pth", "prepare_best.pth", "pseudo_labels") if script == "train_prepare" else ():
        if other != name:
            shutil.move(place.run / other, place.run / f"my_{other}")
    before = {path: path.read_bytes() for path in place.run.rglob("*") if path.is_file() and path.name != ".lock"}
    code, said = place.start(script)
    assert code == 2 and f"holds {name} but no" in said and "add --fresh" in said
    assert {path: path.read_bytes() for path in place.run.rglob("*")
            if path.is_file() and path.name != ".lock"} == before
