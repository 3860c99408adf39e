"""What scripts have in common: batches among processes, where images are held, the log's first lines, resuming."""
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import trees

from configs.defaults import load_config
from processor.run.folder import Run, SilentRun
from processor.setup import Setup, check_shares, train_settings
from tests import scripts
from tests.tiny import one_of
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("data"))


@pytest.fixture
def words(data, tiny_clip_file, tmp_path):
    """A function: changes of the settings -> those of a run in tmp_path, as on the command line."""
    return lambda **changes: scripts.settings(**{
        "DATASET__ROOT": data, "DATASET__CACHE_DIR": tmp_path / "cache", **changes},
        MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=tmp_path / "run")


@pytest.fixture
def new_setup(words):
    """A function: changes of the settings -> `Setup`."""
    return lambda **changes: Setup(load_config(None, words(**changes)), "train_prepare")


@pytest.fixture
def train_prepare(words, monkeypatch):
    """A function: changes of the settings -> exit code of train_prepare.py, which makes no page."""
    scripts.without_report(monkeypatch)
    return lambda **changes: scripts.call(scripts.load("train_prepare"), words(**changes))


@pytest.fixture
def of_two(monkeypatch):
    """A function: rank -> makes every `Setup` one of two processes, which talks to nobody; `left` counts its ends."""
    def join(rank):
        processes = one_of(2, rank)
        processes.left = []
        processes.leave = lambda: processes.left.append(rank)
        monkeypatch.setattr("processor.setup.join_processes", lambda device_type: processes)
        return processes
    return join


def shares(clusters, instances, splits, size):
    words = ["SAMPLER.CLUSTERS", clusters, "SAMPLER.INSTANCES", instances, "BATCH_NORM.SPLITS", splits]
    check_shares(load_config(None, list(map(str, words))), size)


@pytest.mark.parametrize("clusters, instances, splits, size", [
    (16, 16, 1, 1), (3, 2, 1, 6), (2, 3, 6, 1), (4, 3, 2, 4), (4, 3, 4, 2), (6, 1, 3, 3)])
def test_batches_that_divide(clusters, instances, splits, size):
    shares(clusters, instances, splits, size)


@pytest.mark.parametrize("clusters, instances, splits, size, sentence", [
    (3, 3, 1, 2, "= 9 images of each modality cannot be shared equally by 2 processes"),
    (3, 3, 2, 1, "= 9 images of each modality cannot be split into BATCH_NORM.SPLITS 2 equal parts"),
    (3, 4, 2, 3, "BATCH_NORM.SPLITS 2 and 3 processes do not divide one another"),
    (3, 4, 3, 2, "BATCH_NORM.SPLITS 3 and 2 processes do not divide one another")])
def test_batches_that_do_not_divide(clusters, instances, splits, size, sentence):
    with pytest.raises(UserError, match=sentence):
        shares(clusters, instances, splits, size)


def test_the_place_of_the_images(new_setup, of_two, monkeypatch):
    """One process asks what fits, by the bytes of all images; several on CPUs share a file."""
    asked = []
    monkeypatch.setattr("processor.setup.pick_cache", lambda name, size, device: asked.append((name, size)) or "ram")
    setup = new_setup(DATASET__CACHE="auto")
    images = sum(len(images) for split in (setup.data.train, setup.data.test) for images in split.values())
    assert setup.cache == setup.cache == "ram" and asked == [("auto", images * 32 * 16 * 3)]
    of_two(0)
    setup = new_setup(DATASET__CACHE="device")
    assert setup.cache == "mmap" and len(asked) == 1
    setup.device = torch.device("cuda")
    del setup.cache
    assert setup.cache == "ram" and asked[1:] == [("device", images * 32 * 16 * 3)]


def test_what_is_asked_again_is_made_once(new_setup):
    setup = new_setup()
    assert setup.clip is setup.clip and setup.manifest is setup.manifest


@pytest.mark.parametrize("mode, modes", [("both", ["all", "indoor"]), ("", ["all"]), ("indoor", ["indoor"])])
def test_the_modes_that_are_tested(new_setup, mode, modes):
    setup = new_setup(TEST__MODE=mode)
    assert [retrieval.mode for retrieval in setup.retrievals] == modes
    assert setup.tester().retrieval is setup.retrievals[0]


def test_persons_to_find_are_checked_in_each_mode(new_setup, monkeypatch):
    checked = []
    monkeypatch.setattr("processor.setup.check_matches", lambda data, retrieval: checked.append(retrieval.mode))
    new_setup(TEST__MODE="both")
    assert checked == ["all", "indoor"]


@pytest.mark.parametrize("compiles", [False, True])
def test_compile_is_asked_for(new_setup, monkeypatch, compiles):
    compiled = []
    monkeypatch.setattr("processor.setup.compile_parts", lambda tower, device: compiled.append(tower))
    model = new_setup(COMPILE=compiles).model_to_train()
    assert compiled == [model.tower] * compiles


def test_the_log_begins_with_what_runs(new_setup, of_two, tmp_path, monkeypatch):
    monkeypatch.setattr("processor.setup.unused_gpu_warning", lambda: "a GPU lies idle")
    folder = tmp_path / "run"
    setup = new_setup(SEED=7)
    setup.data = dataclasses.replace(setup.data, notes=("a note",))
    setup.start(folder)
    text = (folder / "log.txt").read_text()
    assert f"train_prepare on cpu, DATASET.CACHE {setup.cache}, results in {folder}" in text
    assert "idle" not in text and "a note" in text and all(line in text for line in setup.data.counts())
    assert "SEED: 7" in (folder / "config.yml").read_text()
    facts = json.loads((folder / "report_data/run-train_prepare.json").read_text())
    assert facts["method"] == "CCLNet" and facts["defaults"]["SEED"] == 1 and "torch" in json.dumps(facts)
    new_setup(DEVICE="auto").start(folder)
    assert "warning: a GPU lies idle" in (folder / "log.txt").read_text()
    of_two(0)
    new_setup().start(folder)
    assert "train_prepare on cpu of 2 processes, DATASET.CACHE mmap" in (folder / "log.txt").read_text()


def test_a_process_that_does_not_write(new_setup, of_two, tmp_path):
    """It opens no log and holds no folder, and waits for the others at the end."""
    processes, folder = of_two(1), tmp_path / "run"
    setup = new_setup()
    assert setup.start(folder) is not None and not folder.exists()
    with setup.holding(folder):
        assert not folder.exists() and not processes.left
    assert processes.left == [1]
    with setup.training("prepare", fresh=False, more="fact") as run:
        assert type(run) is SilentRun and run.facts == {} and not folder.exists()


def test_only_one_run_holds_a_folder(new_setup, tmp_path):
    setup = new_setup()
    with setup.holding(tmp_path / "run"), pytest.raises(UserError, match="another run"):
        with setup.holding(tmp_path / "run"):
            pass


def test_links_by_texts_need_texts():
    by_text = load_config(None, ["METHOD.LINK_BY", "text"])
    with pytest.raises(UserError, match="METHOD.LINK_BY is text, but train_prepare.py has no texts"):
        train_settings(by_text, 3, texts=False)
    assert train_settings(by_text, 3).memory.match_by == "text"
    assert train_settings(load_config(), 3, texts=False).memory.match_by == ""


def test_settings_of_a_stage():
    config = load_config(None, ["METHOD.CROSS_EPOCH", "5", "INPUT.GREY", "0.3", "INPUT.CHANNEL", "0.2"])
    plain, restarted = train_settings(config, 3), train_settings(config, 3, restart=True, allow_collapse=False)
    assert (plain.restart_epoch, restarted.restart_epoch) == (None, 5)
    assert (plain.allow_collapse, restarted.allow_collapse) == (True, False)
    grey = {m: (a.grey, a.channel) for m, a in plain.augmentation.items()}
    assert grey == {Modality.RGB: (0.3, 0.2), Modality.IR: (0.0, 0.0)}


@pytest.mark.parametrize("restart, factors", [(False, (0.505, 1.0, 0.1)), (True, (0.505, 0.505, 1.0))])
def test_train_prepare_restarts_at_the_swap_epoch_if_asked(train_prepare, tmp_path, restart, factors):
    """Whatever the fine-tune does: its own key says the opposite here."""
    assert train_prepare(PREPARE__EPOCHS=3, OPTIM__LR=0.001, OPTIM__STEPS="[3]", PREPARE__RESTART_AT_CROSS=restart,
                         FINETUNE__RESTART_AT_CROSS=not restart) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([0.001 * factor for factor in factors])


@pytest.mark.parametrize("allowed, code", [(False, 2), (True, 0)])
def test_train_prepare_goes_past_a_collapse_if_asked(train_prepare, monkeypatch, capsys, allowed, code):
    monkeypatch.setattr("processor.train.make_pseudo_labels",
                        lambda features, *_: torch.zeros(len(features), dtype=torch.int64).numpy())
    assert train_prepare(PREPARE__EPOCHS=3, PREPARE__ALLOW_COLLAPSE=allowed) == code
    assert allowed or "PREPARE.ALLOW_COLLAPSE True" in capsys.readouterr().err


def test_the_beginning_of_a_run(new_setup, monkeypatch, tmp_path):
    """What a state must fit is what checkpoints remember and what the script adds; Weights & Biases only if asked."""
    package = SimpleNamespace(made=[])
    monkeypatch.setattr("processor.setup.check_wandb", lambda: package.made.append("checked"))
    monkeypatch.setattr("processor.setup.WandbLog", lambda *arguments: package.made.append(arguments))
    setup = new_setup()
    with setup.training("prepare", fresh=False, more="fact") as run:
        assert type(run) is Run
        assert run.facts == {**setup.facts(), "clip_weights": run.facts["clip_weights"], "more": "fact"}
        assert len(run.facts["clip_weights"]) > 8
    text = (tmp_path / "run/log.txt").read_text()
    assert not package.made and "None" not in text and "old files" not in text
    setup = new_setup(LOG__WANDB=True)
    with setup.training("prepare", fresh=True) as run:
        assert package.made == ["checked", (str(tmp_path / "run"), "prepare", run.facts["config"])]
        assert run.events.others == [None]
    assert f"old files are kept in {tmp_path / 'run/old-1'}\n" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize("method, views", [("cclnet", 1), ("pgm", 2)])
def test_parts_of_batch_norm_know_the_views_of_the_method(new_setup, method, views):
    setup = new_setup(METHOD__NAME=method, BATCH_NORM__SPLITS=2)
    assert setup.model_to_train().neck.shares == (views, 1)
