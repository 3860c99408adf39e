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
import trees

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


@pytest.fixture(scope="module")
def finished(tiny_clip_file, tmp_path_factory):
    """A folder with data, and a run of all stages on it."""
    base = tmp_path_factory.mktemp("finished")
    trees.people_tree(base / "data", ids=broken.IDS)
    words = scripts.settings(DATASET__ROOT=base / "data", OUTPUT_DIR=base / "run", MODEL__CLIP_WEIGHTS=tiny_clip_file)
    assert [scripts.call(SCRIPTS[name], words) for name in ("train_prepare", "train_clip")] == [0, 0]
    return base


class Case(NamedTuple):
    script: str
    break_it: object            # changes a Place
    sentence: str | None        # a part of what is said, None if it must run
    began: bool = False         # found only while training: the log may be there


def case(name, script, break_it, sentence, began=False):
    return pytest.param(Case(script, break_it, sentence, began), id=name)


CONFIGURATION = [
    case("unknown key", "train_prepare", lambda p: p.set(CLUSTER__ESP=0.5), "did you mean CLUSTER.EPS?"),
    case("file is no YAML", "train_prepare", lambda p: p.config("SEED: [1\n"), "expected YAML"),
    case("links by texts before there are any", "train_prepare", lambda p: p.set(METHOD__LINK_BY="text"),
         "METHOD.LINK_BY is text, but train_prepare.py has no texts"),
    case("height off the stride", "train_prepare", lambda p: p.set(INPUT__HEIGHT=40), "a multiple of 16"),
    case("unknown data set", "train_prepare", lambda p: p.set(DATASET__NAME="market"), "choose sysu, regdb"),
    case("unknown mode", "test", lambda p: p.set(TEST__MODE="v2t"), "all and indoor"),
    case("cuda without a GPU", "train_prepare", lambda p: p.set(DEVICE="cuda"), "set DEVICE to auto or cpu"),
    case("an empty checkpoint path", "test", lambda p: p.flags.extend(["--resume_path", ""]), "--resume_path is empty"),
    case("a name with a line break", "train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "a\nb"),
         "a\\nb' is missing"),
]
DATA = [
    case("root is missing", "train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "no"), "Set DATASET.ROOT"),
    case("id file is missing", "train_prepare", lambda p: (p.data / "exp/test_id.txt").unlink(),
         "test_id.txt is missing"),
    case("id file holds words", "train_prepare", lambda p: (p.data / "exp/val_id.txt").write_text("four"),
         "something else than numbers"),
    case("camera is missing", "train_prepare", lambda p: shutil.rmtree(p.data / "cam6"), "cam6 is missing"),
    case("counts differ", "train_prepare", lambda p: p.set(DATASET__CHECK_COUNTS=True), "DATASET.CHECK_COUNTS False"),
    case("persons in both splits", "train_prepare", lambda p: (p.data / "exp/val_id.txt").write_text("5"), "to test"),
    case("damaged image", "train_prepare", broken.damaged_image, "does not decode"),
    case("link that leads nowhere", "train_prepare", broken.linked_nowhere, "0001.png is missing"),
    case("no query has a match", "train_prepare", broken.no_match, "no query has a match in the gallery"),
    case("every match is hidden", "test", broken.same_place_only, "no query has a match in the gallery"),
    case("original protocol without its file", "test", lambda p: p.set(TEST__PROTOCOL="original-1"),
         "rand_perm_cam.mat"),
    case("all images are outliers", "train_prepare", lambda p: p.set(CLUSTER__MIN_SAMPLES=99), "Raise CLUSTER.EPS",
         began=True),
    case("losses that explode", "train_prepare", lambda p: p.set(METHOD__TEMPERATURE=1e-60), "not finite in epoch",
         began=True),
    case("EPS 0", "train_prepare", lambda p: p.set(CLUSTER__EPS=0, CLUSTER__MIN_SAMPLES=4), "Raise CLUSTER.EPS",
         began=True),
    case("images of 1 x 1 pixel, k1 above their number, batches of one image, spaces and other alphabets",
         "train_prepare", broken.odd_but_right, None),
    case("one query without a match", "test", broken.one_query_without_match, None),
]
WEIGHTS = [
    case("weights are missing", "train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.base / "no.pt"), "are missing"),
    case("weights are no archive", "train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.file("w.pt", "hello")),
         "cannot be read"),
    case("weights hold NaN", "train_prepare", broken.nan_weight, "visual.conv1.weight holds NaN or Inf"),
    case("vision transformer without projection", "train_prepare",
         lambda p: broken.vision_transformer(p, lambda state: state.pop("visual.proj")), "lack visual.proj; expected"),
    case("a vision transformer's stride for a ResNet", "train_prepare", lambda p: p.set(MODEL__STRIDE=12),
         "MODEL.STRIDE is 12, but the weights hold a ResNet"),
    case("a vision transformer's name for a ResNet's file", "train_prepare", lambda p: p.set(MODEL__NAME="ViT-B-16"),
         "MODEL.NAME is ViT-B-16, a vision transformer, but the weights"),
    case("a ResNet's name for a vision transformer's file", "train_prepare",
         lambda p: broken.vision_transformer(p, MODEL__NAME="RN101"), "MODEL.NAME is RN101, a ResNet, but the weights"),
    case("weights without a text tower", "train_clip", lambda p: (p.labels(), broken.no_text_tower(p)),
         "lack ln_final.weight"),
]
LABELS = [
    case("no labels", "train_clip", lambda p: None, "Make them with train_prepare.py"),
    case("labels of wrong length", "train_clip", lambda p: p.labels(rgb=np.zeros(31, int)), "31 labels, but"),
    case("labels all -1", "train_clip", lambda p: p.labels(rgb=np.full(32, -1)), "a larger CLUSTER.EPS"),
    case("labels are an archive", "train_clip", broken.archive_as_labels, "cannot be read"),
    case("labels without a digest, as before", "train_clip", broken.labels_without_digest, None),
    case("one cluster, without a manifest as before", "train_clip",
         lambda p: p.labels(rgb=np.zeros(32, int), ir=np.zeros(16, int)), None),
]
CHECKPOINTS = [
    case("checkpoint is missing", "test", lambda p: p.flags.extend(["--resume_path", p.base / "no.pth"]), "is missing"),
    case("checkpoint is cut", "test", broken.half_checkpoint, "cannot be read safely"),
    case("checkpoint of another architecture", "test", lambda p: p.checkpoint(broken.other_architecture),
         "trunk.layer3.0.conv1.weight is unknown"),
    case("checkpoint of another size", "test", lambda p: (p.checkpoint(lambda c: None), p.set(INPUT__HEIGHT=64)),
         "was trained with INPUT.HEIGHT 32, now it is 64"),
    case("checkpoint holds a list", "test", lambda p: p.checkpoint(lambda c: [1]), "expected a dict"),
    case("checkpoint without weights", "test", lambda p: p.checkpoint(lambda c: {"epoch": 3}), "holds no image side"),
    case("checkpoint of another data set", "test", lambda p: p.checkpoint(lambda c: {**c, "dataset": "RegDB"}),
         "--allow_other_data"),
    case("state file as checkpoint", "test",
         lambda p: p.flags.extend(["--resume_path", p.finished / "run" / "prepare_state.pth"]), "holds no image side"),
    case("a checkpoint of before", "test", lambda p: p.checkpoint(broken.of_before), None),
    case("resuming with another seed", "train_prepare", lambda p: p.resumed(SEED=2), "SEED 1, now it is 2"),
    case("resuming with other clusters", "train_clip", lambda p: p.resumed(CLUSTER__EPS=0.5), "CLUSTER.EPS 0.6"),
    case("resuming with fewer epochs", "train_prepare",
         lambda p: (p.resumed(), broken.shrink_to_go_on(p)), "only more epochs"),
    case("resuming with other weights", "train_prepare", broken.other_weights_of_the_same_name,
         "other weights than it has now"),
    case("resuming with other labels", "train_clip", broken.other_labels, "other pseudo labels"),
    case("resuming with other images", "train_prepare", broken.other_data, "33 train rgb images instead of 32"),
    case("a damaged state", "train_prepare", broken.damaged_state, "Add --fresh"),
    case("resuming with another test", "train_prepare", lambda p: p.resumed(TEST__TRIALS=1), "TEST.TRIALS 2, now it"),
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
