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

from configs.defaults import as_dict, load_config
from processor.run.folder import FORMAT, check_resumable
from utils.errors import UserError

SCRIPTS = {name: scripts.load(name) for name in ("train_prepare", "train_clip", "test")}
OF_A_RUN = ("config.yml", "log.txt", ".lock", "report_data")      # what a run that began may leave; never a result


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
    case("unknown key in the file", "train_prepare", lambda p: p.config("SEDE: 1\n"), "did you mean SEED?"),
    case("wrong type", "train_prepare", lambda p: p.set(CLUSTER__K1="many"), "sets CLUSTER.K1 to 'many' (str)"),
    case("wrong type in the file", "train_prepare", lambda p: p.config("SEED: [1]\n"), "sets SEED to [1] (list)"),
    case("list of words", "train_prepare", lambda p: p.set(OPTIM__STEPS="['a']"), "expected a list of epochs"),
    case("section set to a value", "train_prepare", lambda p: p.config("CLUSTER: 3\n"), "one of its keys"),
    case("file is no YAML", "train_prepare", lambda p: p.config("SEED: [1\n"), "expected YAML"),
    case("file is binary", "train_prepare", lambda p: p.config(b"\xff\xfe\x00SEED"), "expected YAML"),
    case("file is a list", "train_prepare", lambda p: p.config("- SEED\n"), "holds a list"),
    case("file is missing", "train_prepare", lambda p: p.flags.extend(["--config_file", p.base / "no.yml"]),
         "no.yml is missing"),
    case("file is a folder", "train_prepare", lambda p: p.flags.extend(["--config_file", p.base]), "is missing"),
    case("EPS above 1", "train_prepare", lambda p: p.set(CLUSTER__EPS=1.5), "a number from 0 to 1"),
    case("EPS is NaN", "train_prepare", lambda p: p.config("CLUSTER: {EPS: .nan}\n"), "CLUSTER.EPS is nan"),
    case("learning rate is Inf", "train_prepare", lambda p: p.config("OPTIM: {LR: .inf}\n"), "OPTIM.LR is inf"),
    case("batch of no clusters", "train_prepare", lambda p: p.set(SAMPLER__CLUSTERS=0), "from 1 to 10,000"),
    case("batch of no instances", "train_prepare", lambda p: p.set(SAMPLER__INSTANCES=0), "from 1 to 10,000"),
    case("prompt batch 0", "train_clip", lambda p: p.set(PROMPT__BATCH_SIZE=0), "PROMPT.BATCH_SIZE is 0"),
    case("test batch 0", "test", lambda p: p.set(TEST__BATCH_SIZE=0), "TEST.BATCH_SIZE is 0"),
    case("links by texts before there are any", "train_prepare", lambda p: p.set(MEMORY__MATCH_BY="text"),
         "MEMORY.MATCH_BY is text, but train_prepare.py has no texts"),
    case("no epochs", "train_prepare", lambda p: p.set(PREPARE__EPOCHS=0), "PREPARE.EPOCHS is 0"),
    case("negative seed", "train_prepare", lambda p: p.set(SEED=-1), "SEED is -1"),
    case("height off the stride", "train_prepare", lambda p: p.set(INPUT__HEIGHT=40), "a multiple of 16"),
    case("unknown CLIP", "train_prepare", lambda p: p.set(MODEL__NAME="RN18"), "choose RN50 or RN101 or RN50x4"),
    case("no stride", "train_prepare", lambda p: p.set(MODEL__STRIDE=0), "MODEL.STRIDE is 0"),
    case("unknown normalisation", "train_prepare", lambda p: p.set(INPUT__NORMALISATION="mean"),
         "choose imagenet or clip or half"),
    case("a factor without a name", "train_prepare", lambda p: p.set(OPTIM__FACTORS=[0.5]), "expected pairs of"),
    case("a negative factor", "train_prepare", lambda p: p.set(OPTIM__FACTORS=[["neck.", -1]]), "expected pairs of"),
    case("unknown precision", "train_prepare", lambda p: p.set(PRECISION="fp16"), "choose released or fp32 or tf32"),
    case("restart is no yes or no", "train_clip", lambda p: p.set(FINETUNE__RESTART_AT_SWAP="61"),
         "sets FINETUNE.RESTART_AT_SWAP to 61 (int); expected bool"),
    case("unknown protocol", "test", lambda p: p.set(TEST__PROTOCOL="original"), "python or original-1 or original-10"),
    case("removed key", "train_prepare", lambda p: p.set(TEST__SHOTS=1), "unknown key TEST.SHOTS; did you mean"),
    case("removed key in the file", "train_prepare", lambda p: p.config("CLUSTER: {INDEX: exact}\n"),
         "unknown key CLUSTER.INDEX; did you mean"),
    case("unknown cache", "train_prepare", lambda p: p.set(DATASET__CACHE="disk"), "choose auto or mmap or device"),
    case("unknown data set", "train_prepare", lambda p: p.set(DATASET__NAME="market"), "choose sysu, regdb"),
    case("unknown mode", "test", lambda p: p.set(TEST__MODE="v2t"), "all and indoor"),
    case("cuda without a GPU", "train_prepare", lambda p: p.set(DEVICE="cuda"), "set DEVICE to auto or cpu"),
    case("a key twice", "train_prepare", lambda p: p.config("CLUSTER: {K1: 8}\nCLUSTER: {K1: 9}\n"),
         "the key CLUSTER stands twice"),
    case("a key twice in a section", "train_prepare", lambda p: p.config("CLUSTER: {K1: 8, K1: 9}\n"),
         "the key K1 stands twice"),
    case("no value", "train_prepare", lambda p: p.config("CLUSTER: {K1: }\n"), "sets CLUSTER.K1 to None"),
    case("YAML in YAML without end", "train_prepare", lambda p: p.config("A: " + "[" * 5000), "expected YAML"),
    case("KEY=VALUE of an unknown key", "train_prepare", lambda p: p.flags.append("SEEED=2"), "unknown key SEEED"),
    case("KEY=VALUE", "train_prepare", lambda p: p.flags.extend(["CLUSTER.K2=4", "SEED=3"]), None),
    case("an empty checkpoint path", "test", lambda p: p.flags.extend(["--resume_path", ""]), "--resume_path is empty"),
    case("an empty config file", "train_prepare", lambda p: p.flags.extend(["--config_file", ""]),
         "--config_file is empty"),
    case("pixels beyond all measure", "train_prepare", lambda p: p.set(INPUT__HEIGHT=16 * 10 ** 30), "to 2,048"),
    case("a seed of 400 digits", "train_prepare", lambda p: p.set(SEED="9" * 400), "expected a whole number from 0 to"),
    case("a seed of 10,000 digits", "train_prepare", lambda p: p.set(SEED="9" * 10_000), "sets SEED to"),
    case("a number of 400 digits for a fraction", "train_prepare", lambda p: p.set(OPTIM__LR="9" * 400), "OPTIM.LR"),
    case("epochs without end", "train_prepare", lambda p: p.set(PREPARE__EPOCHS=10 ** 9), "from 1 to 1,000,000"),
    case("a number of 10,000 digits in the file", "train_prepare", lambda p: p.config("SEED: " + "9" * 10_000),
         "expected YAML"),
    case("a list in a list in the file", "train_prepare", lambda p: p.config("OPTIM: {STEPS: [[[1]]]}\n"),
         "sets OPTIM.STEPS to [[[1]]]"),
    case("a key of a list in the file", "train_prepare", lambda p: p.config("? [1, 2]\n: 3\n"), "expected YAML"),
    case("a key of a number in the file", "train_prepare", lambda p: p.config("3: 4\n"), "the key 3 (int)"),
    case("a key of 100,000 letters", "train_prepare", lambda p: p.config("? " + "A" * 100_000 + "\n: 3\n"),
         "unknown key AAAA"),
    case("a YAML alias in itself", "train_prepare", lambda p: p.config("CLUSTER: &a\n  B: *a\n"), "without end"),
    case("a NUL in a name", "train_prepare", lambda p: p.config('DATASET: {CACHE_DIR: "a\\0b"}\n'),
         "without a NUL"),
    case("a name of 10,000 letters", "train_prepare", lambda p: p.set(OUTPUT_DIR="a" * 10_000), "at most 4,000"),
    case("a name that no disk takes", "train_prepare", lambda p: p.set(OUTPUT_DIR=p.base / ("a" * 300)),
         "choose another"),
    case("a name with a line break", "train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "a\nb"),
         "a\\nb' is missing"),
    case("a name whose bytes are no UTF-8", "train_prepare", lambda p: p.set(DATASET__ROOT="a\udcffb"), "a\\xffb"),
    case("endless brackets", "train_prepare", lambda p: p.set(SEED="(" * 100_000), "sets SEED to '((("),
    case("no output folder", "train_prepare", lambda p: p.set(OUTPUT_DIR="''"), "OUTPUT_DIR is empty"),
]
DATA = [
    case("root is missing", "train_prepare", lambda p: p.set(DATASET__ROOT=p.base / "no"), "Set DATASET.ROOT"),
    case("id file is missing", "train_prepare", lambda p: (p.data / "exp/test_id.txt").unlink(),
         "test_id.txt is missing"),
    case("id file holds words", "train_prepare", lambda p: (p.data / "exp/val_id.txt").write_text("four"),
         "something else than numbers"),
    case("camera is missing", "train_prepare", lambda p: shutil.rmtree(p.data / "cam6"), "cam6 is missing"),
    case("counts differ", "train_prepare", lambda p: p.set(DATASET__CHECK_COUNTS=True), "DATASET.CHECK_COUNTS False"),
    case("persons in both splits", "train_prepare", lambda p: (p.data / "exp/val_id.txt").write_text("5"), "disjoint"),
    case("damaged image", "train_prepare", broken.damaged_image, "does not decode"),
    case("image bomb", "train_prepare", broken.image_bomb, "more than 50,000,000"),
    case("link that leads nowhere", "train_prepare", broken.linked_nowhere, "0001.png is missing"),
    case("no query has a match", "train_prepare", broken.no_match, "no query has a match in the gallery"),
    case("every match is hidden", "test", broken.same_place_only, "no query has a match in the gallery"),
    case("original protocol without its file", "test", lambda p: p.set(TEST__PROTOCOL="original-1"),
         "rand_perm_cam.mat"),
    case("all images are outliers", "train_prepare", lambda p: p.set(CLUSTER__MIN_SAMPLES=99), "Raise CLUSTER.EPS",
         began=True),
    case("losses that explode", "train_prepare", lambda p: p.set(MEMORY__TEMPERATURE=1e-60), "not finite in epoch",
         began=True),
    case("EPS 0", "train_prepare", lambda p: p.set(CLUSTER__EPS=0, CLUSTER__MIN_SAMPLES=4), "Raise CLUSTER.EPS",
         began=True),
    case("images of 1 x 1 pixel", "train_prepare", broken.tiny_images, None),
    case("k1 above the number of images", "train_prepare", lambda p: p.set(CLUSTER__K1=10_000, CLUSTER__K2=500), None),
    case("EPS 1", "train_prepare", lambda p: p.set(CLUSTER__EPS=1), None),
    case("batches of one image", "train_prepare", lambda p: p.set(SAMPLER__CLUSTERS=1, SAMPLER__INSTANCES=1), None),
    case("batches larger than the data set", "train_prepare", lambda p: p.set(SAMPLER__CLUSTERS=9), None),
    case("one query without a match", "test", broken.one_query_without_match, None),
    case("spaces and other alphabets", "train_prepare", broken.odd_folders, None),
]
WEIGHTS = [
    case("weights are missing", "train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.base / "no.pt"), "are missing"),
    case("weights are no archive", "train_prepare", lambda p: p.set(MODEL__CLIP_WEIGHTS=p.file("w.pt", "hello")),
         "cannot be read"),
    case("weights hold NaN", "train_prepare", broken.nan_weight, "visual.conv1.weight holds NaN or Inf"),
    case("weights hold Inf", "train_prepare", broken.inf_weight, "text_projection holds NaN or Inf"),
    case("vision transformer without projection", "train_prepare",
         lambda p: broken.vision_transformer(p, lambda state: state.pop("visual.proj")), "do not fit together"),
    case("vision transformer of odd width", "train_prepare",
         lambda p: broken.vision_transformer(p, broken.narrow_transformer), "of width 44; expected a multiple of 64"),
    case("vision transformer without a square grid", "train_prepare",
         lambda p: broken.vision_transformer(p, lambda state: state.update(
             {"visual.positional_embedding": torch.ones(9, 64)})), "do not fit together"),
    case("patches that leave gaps", "train_prepare", lambda p: broken.vision_transformer(p, MODEL__STRIDE=17),
         "expected 1 to 16"),
    case("images smaller than a patch", "train_prepare",
         lambda p: broken.vision_transformer(p, INPUT__WIDTH=15), "INPUT.WIDTH is 15; expected 16 or more"),
    case("a vision transformer's stride for a ResNet", "train_prepare", lambda p: p.set(MODEL__STRIDE=12),
         "MODEL.STRIDE is 12, but the weights hold a ResNet"),
    case("a vision transformer's name for a ResNet's file", "train_prepare", lambda p: p.set(MODEL__NAME="ViT-B-16"),
         "MODEL.NAME is ViT-B-16, a vision transformer, but the weights"),
    case("a ResNet's name for a vision transformer's file", "train_prepare",
         lambda p: broken.vision_transformer(p, MODEL__NAME="RN101"), "MODEL.NAME is RN101, a ResNet, but the weights"),
    case("frozen weights that are not there", "train_prepare", lambda p: p.set(OPTIM__FACTORS=[["tower.stem.", 0]]),
         "OPTIM.FACTORS names tower.stem., with which no weight's name begins"),
    case("a vision transformer, images of any size", "train_prepare",
         lambda p: broken.vision_transformer(p, MODEL__STRIDE=12, INPUT__HEIGHT=29, INPUT__WIDTH=18), None),
    case("weights without a text tower", "train_clip", lambda p: (p.labels(), broken.no_text_tower(p)),
         "lack the text tower"),
    case("weights do not fit together", "train_prepare", broken.misfit_weights, "do not fit together"),
]
LABELS = [
    case("no labels", "train_clip", lambda p: None, "Make them with train_prepare.py"),
    case("labels of wrong length", "train_clip", lambda p: p.labels(rgb=np.zeros(31, int)), "31 labels, but"),
    case("labels of fractions", "train_clip", lambda p: p.labels(ir=np.zeros(16)), "float64"),
    case("labels of two dimensions", "train_clip", lambda p: p.labels(ir=np.zeros((16, 1), int)), "shape (16, 1)"),
    case("labels below -1", "train_clip", lambda p: p.labels(ir=np.full(16, -2)), "from -1 on"),
    case("labels beyond all numbers", "train_clip", lambda p: p.labels(ir=np.full(16, 2 ** 64 - 1, np.uint64)),
         "expected cluster numbers"),
    case("labels all -1", "train_clip", lambda p: p.labels(rgb=np.full(32, -1)), "a larger CLUSTER.EPS"),
    case("labels are pickled", "train_clip", lambda p: p.labels(rgb=np.array([{}] * 32)), "cannot be read"),
    case("labels are an archive", "train_clip", broken.archive_as_labels, "cannot be read"),
    case("labels claim a petabyte", "train_clip", broken.lying_header, "cannot be read"),
    case("manifest of something else", "train_clip", broken.foreign_manifest, "is no manifest"),
    case("one cluster", "train_clip", lambda p: p.labels(rgb=np.zeros(32, int), ir=np.zeros(16, int)), None),
    case("a cluster per image, numbered beyond them", "train_clip",
         lambda p: p.labels(rgb=np.arange(32) * 1000, ir=np.arange(16)), None),
    case("prompt batches of one pair", "train_clip", lambda p: (p.labels(), p.set(PROMPT__BATCH_SIZE=1)), None),
]
CHECKPOINTS = [
    case("checkpoint is missing", "test", lambda p: p.flags.extend(["--resume_path", p.base / "no.pth"]), "is missing"),
    case("checkpoint is cut", "test", broken.half_checkpoint, "cannot be read safely"),
    case("checkpoint of another architecture", "test", lambda p: p.checkpoint(broken.other_architecture),
         "does not fit"),
    case("checkpoint of another size", "test", lambda p: (p.checkpoint(lambda c: None), p.set(INPUT__HEIGHT=64)),
         "was trained with INPUT.HEIGHT 32, now it is 64"),
    case("checkpoint holds a list", "test", lambda p: p.checkpoint(lambda c: [1]), "expected a dict"),
    case("checkpoint without weights", "test", lambda p: p.checkpoint(lambda c: {"epoch": 3}), "holds no image side"),
    case("checkpoint whose configuration is none", "test", lambda p: p.checkpoint(lambda c: {**c, "config": 3}),
         "its configuration"),
    case("checkpoint of another data set", "test", lambda p: p.checkpoint(lambda c: {**c, "dataset": "RegDB"}),
         "--allow_other_data"),
    case("state file as checkpoint", "test",
         lambda p: p.flags.extend(["--resume_path", p.finished / "run" / "prepare_state.pth"]), "holds no image side"),
    case("resuming with another seed", "train_prepare", lambda p: p.resumed(SEED=2), "SEED 1, now it is 2"),
    case("resuming with other clusters", "train_clip", lambda p: p.resumed(CLUSTER__EPS=0.5), "CLUSTER.EPS 0.6"),
    case("resuming with fewer epochs", "train_prepare",
         lambda p: (p.resumed(), broken.shrink_to_go_on(p)), "only more epochs"),
    case("resuming with other weights", "train_prepare", broken.other_weights_of_the_same_name, "other clip weights"),
    case("resuming with other labels", "train_clip", broken.other_labels, "other pseudo labels"),
    case("resuming with other images", "train_prepare", broken.other_data, "33 train rgb images instead of 32"),
    case("both states damaged", "train_prepare", broken.damaged_states, "Add --fresh"),
    case("state of something else", "train_prepare", broken.foreign_state, "not of this version"),
    case("resuming with another test", "train_prepare", lambda p: p.resumed(TEST__TRIALS=1, TEST__EVERY=3), None),
    case("resuming with images held elsewhere", "train_prepare", lambda p: p.resumed(DATASET__CACHE="mmap"), None),
    case("resuming with more epochs", "train_prepare", lambda p: p.resumed(PREPARE__EPOCHS=2), None),
]
COMMAND_LINE = [
    case("odd number of words", "train_prepare", lambda p: p.flags.append("SEED"), "KEY VALUE pairs"),
    case("unknown flag", "train_prepare", lambda p: p.flags.append("--fres"), "--help lists"),
    case("flag without its value", "train_prepare", lambda p: p.flags.append("--config_file"), "DEVICE is missing"),
    case("flag of another script", "train_prepare", lambda p: p.flags.append("--resume_path=x"), "--resume_path=x"),
    case("output folder is a file", "train_prepare", broken.output_is_a_file, "choose another"),
    case("output folder of a test is a file", "test", broken.output_is_a_file, "choose another"),
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
        after = {name: value for name, value in after.items() if name not in OF_A_RUN and "tensorboard" not in name
                 and not name.startswith("report_data/run-")}
        before = before or {}
    assert after == before


@pytest.mark.parametrize("words, sentence", [
    (["--dataset", "market", "--root", "x"], "data set 'market' is unknown; choose"),
    (["--dataset", "sysu"], "--root"),
    (["--dataset", "sysu", "--root", "no/such"], "data root no/such is missing"),
    (["--dataset", "regdb", "--root", ".", "--trial", "eleven"],
     "argument --trial: 'eleven' is no whole number from 1 to 1,000,000"),
])
def test_bad_words_for_process(words, sentence, capsys):
    assert scripts.call(scripts.load("tools/process"), words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and sentence in said


def test_a_state_from_before_a_key_resumes_with_its_default():
    facts = {"config": as_dict(load_config())}
    old = {"format": FORMAT, "config": as_dict(load_config()), "stages": {}, "best": -1.0, "history": [],
           "dataset": "SYSU-MM01", "trial": 1, "manifest": {"train": {}, "test": {}}}
    del old["config"]["MEMORY"]["SWAP_ORDER"]
    assert check_resumable(old, facts, "run") == []
    facts["config"]["MEMORY"]["SWAP_ORDER"] = "simultaneous"
    with pytest.raises(UserError, match="MEMORY.SWAP_ORDER 'released', now it is 'simultaneous'"):
        check_resumable(old, facts, "run")


def test_configurations_of_older_checkpoints_are_read():
    stored = as_dict(load_config(overrides=["CLUSTER.K1", "7"]))
    stored["CLUSTER"]["INDEX"], stored["PROMPT"]["TEMPERATURE"], stored["DATASET"]["CACHE"] = "ivf", 1.0, "memory"
    stored["TEST"].update(PROTOCOL="original", SHOTS=10)
    config = load_config(base=stored)
    assert (config.CLUSTER.K1, config.TEST.PROTOCOL, config.DATASET.CACHE) == (7, "original-10", "auto")
    assert "SHOTS" not in config.TEST and stored["TEST"]["SHOTS"] == 10
    stored["TEST"]["SHOT"] = 1
    with pytest.raises(UserError, match="the checkpoint's configuration has the unknown key TEST.SHOT;"):
        load_config(base=stored)
