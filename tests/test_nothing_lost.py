"""Files that are not ours are neither replaced nor followed; what is started over takes along what was made from it."""
import re
import shutil

import numpy as np
import pytest
import scripts
import trees

from processor.run.folder import lock_folder, read_rows
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


@pytest.fixture
def copied(place, trained):
    """The folder that `place` trains in, with the run of both scripts, none of its tests."""
    shutil.copytree(trained, place.run, ignore=shutil.ignore_patterns("tests"))
    return place


def test_fresh_takes_along_what_was_made_from_the_old_stage(copied):
    """First the fine-tune is started over, then everything."""
    def files():
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    run = copied.run
    for name in ("mine.txt", "report.html", "report_data/prepare.json", "report_data/finetune.json"):
        (run / name).write_text(name)
    for of in ("prepare_last", "model_last"):
        add_test(run, 0.5, of)
    for script, folder, stays, stages in (
            ("train_clip", "old-1", "prepare|pseudo_labels", ["prepare", "prompt", "finetune"]),
            ("train_prepare", "old-2", "old-1", ["prepare"])):
        before = files()
        assert copied.start(script, "--fresh")[0] == 0
        moved = {name for name in before if not re.search(f"mine|log.txt|.lock|{stays}", name)}
        assert {name: content for name, content in files().items() if name.startswith(folder)} == {
            f"{folder}/{name}": before[name] for name in moved}
        assert [row["stage"] for row in read_rows(run)] == stages and (run / "mine.txt").is_file()


def test_a_test_replaces_nothing_of_a_training_run_and_does_not_mix_with_a_running_one(copied):
    before = {path: path.read_bytes() for path in copied.run.glob("*") if path.is_file()}
    tests = (["--resume_path", copied.run / "prepare_last.pth"], [])
    assert [copied.start("test", *words)[0] for words in tests] == [0, 0]
    results = {path: path.read_bytes() for path in copied.run.rglob("metrics.json")}
    assert len(results) == 2
    with lock_folder(next(path.parent for path in results if "baseline" not in str(path))):
        assert [copied.start("test", *words)[0] for words in tests] == [2, 0]
    assert {path: path.read_bytes() for path in copied.run.glob("*") if path.is_file()} == before


def test_a_result_is_replaced_only_by_the_same_test(place, trained):
    """It lies beside the checkpoint, whatever OUTPUT_DIR says. Each file of permutations draws other galleries."""
    def results():
        return {path: path.read_bytes() for path in trained.glob("tests/model_last-*/metrics.json")}

    assert place.start("test", "--resume_path", trained / "model_last.pth")[0] == 0
    before = results()
    original = {"TEST__PROTOCOL": "original-1"}
    for trials, more, changes in ((2, 0, {}), (2, 1, {"TEST__MODE": "indoor"}), (2, 1, original), (3, 1, original)):
        trees.permutation_file(place.data, trials, persons=7)
        assert place.start("test", "--resume_path", trained / "model_last.pth", **changes)[0] == 0
        after = results()
        assert after.items() >= before.items() and len(after) == len(before) + more and not place.run.exists()
        before = after


def test_train_clip_refuses_labels_that_its_train_prepare_would_not_make(place, trained):
    """Of another method, seed or epoch, or before they are there."""
    shutil.copytree(trained / "pseudo_labels", place.run / "pseudo_labels")
    for changes, named in (({"METHOD__NAME": "pgm"}, "METHOD.NAME cclnet, not pgm"), ({"SEED": 2}, "SEED 1, not 2"),
                           ({"PREPARE__EPOCHS": 2}, "PREPARE.EPOCHS 1, not 2")):
        code, said = place.start("train_clip", **changes)
        assert code == 2 and f"were made with {named}" in said and not (place.run / "config.yml").exists()
    shutil.move(place.run / "pseudo_labels", place.data / "pseudo_labels")
    (place.run / "prepare_last.pth").write_bytes(b"of an unfinished run")
    code, said = place.start("train_clip")
    assert code == 2 and "train_prepare.py has not finished" in said


@pytest.mark.parametrize("script, name", [("train_prepare", "pseudo_labels"), ("train_clip", "model_best.pth")])
def test_what_no_state_tells_of_is_not_trained_over(copied, script, name):
    """A run whose state is lost, labels that were downloaded, a checkpoint from elsewhere."""
    for path in [*copied.run.glob("*_state.pth*"), *copied.run.glob("prepare_*.pth"), copied.run / "metrics.jsonl"]:
        path.unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in copied.run.rglob("*") if path.is_file() and path.name != ".lock"}
    code, said = copied.start(script)
    assert code == 2 and f"holds {name} but no" in said and "add --fresh" in said
    assert {path: path.read_bytes() for path in copied.run.rglob("*")
            if path.is_file() and path.name != ".lock"} == before
