"""One table of bad input: each ends in one sentence with the remedy and exit code 2, and nothing is written.

Rows whose sentence is None are odd but right: they must run.
"""
import hashlib
import shutil
from typing import NamedTuple

import broken
import numpy as np
import pytest
import scripts
import torch

SCRIPTS = {name: scripts.load(name) for name in ("train_prepare", "train_clip", "test")}
# What a run that began may leave; never a result.
OF_A_RUN = ("config.yml", "log.txt", ".lock", "prepare_state.pth")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        scripts.without_report(monkeypatch)
        yield
    torch.set_num_threads(threads)


class Case(NamedTuple):
    script: str
    break_it: object            # changes a Place
    sentence: str | None        # a part of what is said, None if it must run
    began: bool = False         # found only while training: the log may be there


def case(name, script, break_it, sentence, began=False):
    return pytest.param(Case(script, break_it, sentence, began), id=name)


CONFIGURATION = [
    case("unknown key", "train_prepare", lambda p: p.set(CLUSTER__ESP=0.5), "did you mean CLUSTER.EPS?"),
    case("unknown data set", "train_prepare", lambda p: p.set(DATASET__NAME="market"), "choose sysu, regdb"),
    case("cuda without a GPU", "train_prepare", lambda p: p.set(DEVICE="cuda"), "set DEVICE to auto or cpu"),
    case("an empty checkpoint path", "test", lambda p: p.flags.extend(["--resume_path", ""]), "--resume_path is empty"),
    case("a name with a line break", "train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "a\nb"),
         "a\\nb' is missing"),
]
DATA = [
    case("root is missing", "train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "no"), "Set DATASET.ROOT"),
    case("id file is missing", "train_prepare", lambda p: (p.data / "exp/test_id.txt").unlink(),
         "test_id.txt is missing"),
    case("camera is missing", "train_prepare", lambda p: shutil.rmtree(p.data / "cam6"), "cam6 is missing"),
    case("counts differ", "train_prepare", lambda p: p.set(DATASET__CHECK_COUNTS=True), "DATASET.CHECK_COUNTS False"),
    case("link that leads nowhere", "train_prepare", broken.linked_nowhere, "0001.png is missing"),
    case("no query has a match", "train_prepare", broken.no_match, "no query has a match in the gallery"),
    case("every match is hidden", "test", broken.same_place_only, "no query has a match in the gallery"),
    case("all images are outliers", "train_prepare", lambda p: p.set(CLUSTER__MIN_SAMPLES=99), "Raise CLUSTER.EPS",
         began=True),
    case("images of 1 x 1 pixel, k1 above their number, batches of one image, spaces and other alphabets",
         "train_prepare", broken.odd_but_right, None),
    case("one query without a match", "test", broken.one_query_without_match, None),
]
WEIGHTS = [
    case("weights are missing", "train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.base / "no.pt"), "are missing"),
    case("weights are no archive", "train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.file("w.pt", "hello")),
         "cannot be read"),
    case("a vision transformer's name for a ResNet's file", "train_prepare", lambda p: p.set(MODEL__NAME="ViT-B-16"),
         "MODEL.NAME is ViT-B-16, a vision transformer, but the weights"),
    case("weights without a text tower", "train_clip", lambda p: (p.labels(), broken.no_text_tower(p)),
         "lack ln_final.weight"),
]
LABELS = [
    case("no labels", "train_clip", lambda p: None, "Make them with train_prepare.py"),
    case("labels all -1", "train_clip", lambda p: p.labels(rgb=np.full(32, -1)), "a larger CLUSTER.EPS"),
    case("one cluster, without a manifest as before", "train_clip",
         lambda p: p.labels(rgb=np.zeros(32, int), ir=np.zeros(16, int)), None),
]
CHECKPOINTS = [
    case("checkpoint is missing", "test", lambda p: p.flags.extend(["--resume_path", p.base / "no.pth"]), "is missing"),
    case("checkpoint of another size", "test", lambda p: (p.checkpoint(lambda c: None), p.set(INPUT__HEIGHT=64)),
         "was trained with INPUT.HEIGHT 32, now it is 64"),
    case("checkpoint of another data set", "test", lambda p: p.checkpoint(lambda c: {**c, "dataset": "RegDB"}),
         "--allow_other_data"),
    case("state file as checkpoint", "test",
         lambda p: p.flags.extend(["--resume_path", p.finished / "run" / "prepare_state.pth"]), "holds no image side"),
    case("a checkpoint of before", "test", lambda p: p.checkpoint(broken.of_before), None),
    case("resuming with another seed", "train_prepare", lambda p: p.resumed(SEED=2), "SEED 1, now it is 2"),
    case("resuming with other weights", "train_prepare", broken.other_weights_of_the_same_name,
         "other weights than it has now"),
    case("resuming with other labels", "train_clip", broken.other_labels, "other pseudo labels"),
    case("resuming with other images", "train_prepare", broken.other_data, "33 train rgb images instead of 32"),
    case("a damaged state", "train_prepare", broken.damaged_state, "Add --fresh"),
    case("resuming with more epochs, other ones to test, and images held elsewhere", "train_prepare",
         lambda p: p.resumed(PREPARE__EPOCHS=2, TEST__EVERY=3, DATASET__CACHE="mmap"), None),
]
COMMAND_LINE = [
    case("flag without its value", "train_prepare", lambda p: p.flags.append("--config_file"), "DEVICE is missing"),
    case("output folder is a file", "train_prepare", broken.output_is_a_file, "choose another"),
]


def files_under(folder):
    """Relative path -> hash of every file and folder."""
    if folder.is_file():
        return hashlib.sha256(folder.read_bytes()).hexdigest()
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in folder.rglob("*")} if folder.exists() else None


@pytest.mark.parametrize("row", CONFIGURATION + DATA + WEIGHTS + LABELS + CHECKPOINTS + COMMAND_LINE)
def test_bad_input(row, finished, tiny_clip_file, tmp_path, capsys):
    place = broken.Place(tmp_path, finished, tiny_clip_file)
    place.restore = lambda: None
    row.break_it(place)
    before = files_under(place.run)
    capsys.readouterr()
    try:
        code = scripts.call(SCRIPTS[row.script], place.words())
    finally:
        place.restore()
    said = capsys.readouterr().err.strip()
    if row.sentence is None:
        assert (code, said) == (0, "")
        return
    assert code == 2 and said.startswith("error: ") and "\n" not in said and "Traceback" not in said, said
    assert row.sentence in said and len(said) < 700, said
    after = files_under(place.run)
    if row.began:
        after = {name: value for name, value in after.items() if name not in OF_A_RUN}
        before = before or {}
    assert after == before


@pytest.mark.parametrize("words, sentence", [
    (["--dataset", "market", "--root", "."], "data set 'market' is unknown; choose"),
    (["--dataset", "sysu"], "--root"),
    (["--dataset", "sysu", "--root", "no/such"], "no/such is no folder; expected that of the data set sysu"),
    (["--dataset", "regdb", "--root", ".", "--trial", "eleven"],
     "argument --trial: 'eleven' is no whole number from 1 to 1,000,000"),
])
def test_bad_words_for_process(words, sentence, capsys):
    assert scripts.call(scripts.load("tools/process"), words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and sentence in said
