"""Configurations: what a typed value becomes, whose settings win, and what is refused."""
import math
import re
from pathlib import Path

import pytest

from configs.checkpoint import settings_of
from configs.defaults import as_dict, load_config
from configs.groups import group_names, may_change
from configs.settings import SETTINGS
from utils.errors import UserError
from utils.settings import flat


def value(key, *typed, file=None):
    """The value of a key of which `typed` stands on the command line."""
    return flat(as_dict(load_config(file, [key, *typed] if typed else ())))[key]


@pytest.fixture
def yml(tmp_path):
    """A function: text -> path of a .yml file."""
    def write(text):
        (tmp_path / "own.yml").write_text(text)
        return str(tmp_path / "own.yml")
    return write


@pytest.mark.parametrize("key, typed, becomes", [
    ("OUTPUT_DIR", "2024_01", "2024_01"), ("OUTPUT_DIR", "1.10", "1.10"), ("OUTPUT_DIR", "True", "True"),
    ("PSEUDO_LABEL_DIR", "010", "010"),
    ("OUTPUT_DIR", "a=b", "a=b"), ("OUTPUT_DIR", "~/runs", str(Path.home() / "runs")), ("SEED", "7", 7),
    ("OPTIM.LR", "1", 1.0), ("OPTIM.LR", "3.5e-4", 0.00035),
    ("COMPILE", "true", True), ("COMPILE", "False", False), ("OPTIM.STEPS", "[3, 4]", [3, 4]),
    ("OPTIM.FACTORS", "[['neck.', 0.5], ['tower.', 0]]", [["neck.", 0.5], ["tower.", 0]])])
def test_what_was_typed_gets_its_settings_type(yml, key, typed, becomes):
    """On the command line or in a file, where YAML would make numbers of dates."""
    section, _, name = key.rpartition(".")
    line = f"{section}: {{{name}: {typed}}}" if section else f"{name}: {typed}"
    for found in (value(key, typed), value(key, file=yml(line))):
        assert (found, type(found)) == (becomes, type(becomes))


@pytest.mark.parametrize("text, sentence", [
    ("SEED: 1:30", "sets SEED to 1:30; expected a whole"),
    ("COMPILE: yes", "sets COMPILE to yes; expected True or False"),
    ("INPUT: {HEIGHT: 2.5}", "sets INPUT.HEIGHT to 2.5; expected a whole number"),
    ("CLUSTER: {ESP: 0.5}", "unknown key CLUSTER.ESP; did you mean CLUSTER.EPS?"),
    ("sead: 1", "did you mean SEED?"),
    ("CLUSTER: {K1: 1}\nCLUSTER: {K1: 2}", "the key CLUSTER stands twice"), ("CLUSTER: {K1: }", "CLUSTER.K1"),
    ("CLUSTER: 3", "unknown key CLUSTER; did you mean CLUSTER."), ("[1, 2]", "holds a list"),
    ("CLUSTER: {EPS: 1.5}", "CLUSTER.EPS to 1.5; expected a number from 0 to"),
    ("OPTIM: {WEIGHT_DECAY: 1e400}", "sets OPTIM.WEIGHT_DECAY to inf; expected a number from 0 on"),
    ("OPTIM: {STEPS: [a]}", "sets OPTIM.STEPS to ['a']; expected a list of epochs such as [30, 50]"),
    ("DATASET: {IR_RANGE: [9000, 7000]}", "expected two numbers, the lower one first"),
    ("DATASET: {IR_RANGE: [.inf, a]}", "expected two numbers"),
    ("OPTIM: {FACTORS: [[neck., -1]]}", "expected pairs of"), ("OPTIM: {FACTORS: [neck.]}", "expected pairs of"),
    ("TEST: {PROTOCOL: x}", "sets TEST.PROTOCOL to x; expected python or original-1 or"),
    ("METHOD: {NAME: ours}", "METHOD.NAME is ours; expected cclnet or pgm or rpnr or "),
    ("CHECKPOINT: {MINUTES: 5}", "unknown key CHECKPOINT.MINUTES; docs/settings.md lists"),
    ("METHOD: {NAME: none, SWAP_SCALE: 0.3}", "unknown key METHOD.SWAP_SCALE; METHOD.NAME cclnet has it."),
    ("METHOD: {NAME: pgm, CROS_WEIGHT: 1}", "unknown key METHOD.CROS_WEIGHT; did you mean METHOD.CROSS_WEIGHT?"),
    ("METHOD: {NAME: rpnr, TOP_IMAGES: 0}", "sets METHOD.TOP_IMAGES to 0; expected a whole number from 1 on"),
    ("METHOD: {RENEWAL: soft}", "sets METHOD.RENEWAL to soft; expected plain or hard"),
    ("OUTPUT_DIR: ''", "sets OUTPUT_DIR to ''; expected a folder"),
    ("SEED: __import__('os')", "sets SEED to __import__")])
def test_what_a_file_may_not_say(yml, text, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        load_config(yml(text))
    assert "\n" not in str(error.value) and str(error.value).count("such as") < 2


def test_the_command_line_beats_the_file_and_the_file_beats_the_checkpoint(yml):
    base = {"SEED": 3, "CLUSTER": {"K1": 7, "K2": 4, "EPS": 0.5}}
    config = load_config(yml("CLUSTER: {K1: 8, K2: 9}"), ["CLUSTER.K1=10", "TEST.MODE=indoor", "OUTPUT_DIR", "="], base)
    assert (config.SEED, config.CLUSTER.K1, config.CLUSTER.K2, config.CLUSTER.EPS) == (3, 10, 9, 0.5)
    assert (config.TEST.MODE, config.OUTPUT_DIR) == ("indoor", "=")
    with pytest.raises(AttributeError):
        config.SEED = 4
    for words in (["SEED"], ["SEED", "2", "COMPILE"]):
        with pytest.raises(UserError, match="are no KEY VALUE pairs"):
            load_config(None, words)


def test_what_a_checkpoint_of_others_decides(tmp_path):
    """The network, its input, the data that is read and the seed; never where files go or what is logged."""
    config = {"OUTPUT_DIR": "theirs", "PSEUDO_LABEL_DIR": "theirs", "DEVICE": "cuda", "COMPILE": True, "SEED": 3,
              "LOG": {"WANDB": True}, "TEST": {"TRIALS": 1}, "METHOD": {"NAME": "theirs"}, "GONE": {"KEY": 2},
              "DATASET": {"NAME": "regdb", "ROOT": "a", "TRIAL": 2, "CACHE_DIR": "theirs", "CHECK_COUNTS": False},
              "INPUT": {"HEIGHT": 96, "NORMALISATION": "clip"}, "MODEL": {"STRIDE": 8, "GONE": 1}}
    found = flat(as_dict(load_config(base=settings_of({"config": config, "model": {"height": 64, "width": 48}}))))
    default = flat(as_dict(load_config()))
    assert {key: value for key, value in found.items() if value != default[key]} == {
        "SEED": 3, "DATASET.NAME": "regdb", "DATASET.ROOT": "a", "DATASET.TRIAL": 2, "DATASET.CHECK_COUNTS": False,
        "INPUT.HEIGHT": 96, "INPUT.WIDTH": 48, "INPUT.NORMALISATION": "clip", "MODEL.STRIDE": 8}
    for root, name in ((tmp_path, "demo"), (tmp_path / "not drawn", "sysu")):
        base = settings_of({"config": {"DATASET": {"NAME": "demo", "ROOT": str(root)}}})
        assert load_config(base=base).DATASET.NAME == name
    assert settings_of({}) == settings_of({"config": [1]}) == {}


@pytest.mark.parametrize("key, wrong, sentence", [
    ("HEIGHT", 0, "INPUT.HEIGHT to 0; expected a whole number from 1"),
    ("NORMALISATION", "x" * 999, "expected imagenet or clip or half"), ("FLIP", math.nan, "expected a number from 0")])
def test_a_checkpoints_values_are_checked_as_typed_ones(key, wrong, sentence):
    with pytest.raises(UserError, match="^the checkpoint sets .*" + re.escape(sentence)) as error:
        load_config(base=settings_of({"config": {"INPUT": {key: wrong}}}))
    assert len(str(error.value)) < 300


def test_a_method_has_its_own_settings_and_defaults():
    keys = {name: load_config(None, ["METHOD.NAME", name]).METHOD for name in ("cclnet", "pgm", "none")}
    assert "SWAP_SCALE" in keys["cclnet"] and "SWAP_SCALE" not in keys["pgm"] and "CROSS_WEIGHT" in keys["pgm"]
    assert (keys["cclnet"].LINK_BY, keys["pgm"].LINK_BY) == ("prototype", "centroid") and "LINK_BY" not in keys["none"]
    assert value("METHOD.RENEWAL", file="configs/sysu_pgm.yml") == "hard"


@pytest.mark.parametrize("words, found", [
    ([], "dataset/demo"), (["DATASET.ROOT", "mine"], "mine")])
def test_the_demo_is_never_drawn_where_a_data_set_belongs(words, found):
    assert load_config(None, ["DATASET.NAME", "demo", *words]).DATASET.ROOT == found
    assert value("OUTPUT_DIR", "runs/{trial}/x") == "runs/1/x"


def test_which_settings_may_change_and_which_make_another_experiment():
    keys = [setting.name for setting in SETTINGS]
    free = {key for key in keys if may_change(key)}
    assert {"DEVICE", "OUTPUT_DIR", "TEST.EVERY", "DATASET.ROOT", "PREPARE.ALLOW_COLLAPSE"} <= free
    assert not free & {"SEED", "DATASET.TRIAL", "DATASET.NAME", "OPTIM.LR", "CLUSTER.K1", "METHOD.NAME", "PRECISION",
                       "TEST.MODE"}        # by which the best epoch is chosen
    runs = [{"SEED": 1}, {"SEED": 2, "TEST.EVERY": 1}, {"CLUSTER.EPS": 0.5}]
    assert group_names(runs) == ["cclnet, CLUSTER.EPS 0.6", "cclnet, CLUSTER.EPS 0.6", "cclnet, CLUSTER.EPS 0.5"]
