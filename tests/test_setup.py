"""What scripts have in common: batches among processes, where images are held, the beginning of a run."""
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import trees

from configs.defaults import load_config
from data.pseudo_labels import labels_digest, save_pseudo_labels
from loss.methods import METHODS
from processor.prompt import PromptState, text_features
from processor.setup import Setup, check_needs, check_shares, prompt_settings
from tests import scripts
from tests.tiny import one_of
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("data"), ids={"train": (1, 2), "val": (3,), "test": (4, 5)})


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


@pytest.mark.parametrize("clusters, instances, splits, size, sentence", [
    (3, 2, 1, 6, None), (4, 3, 4, 2, None),
    (3, 3, 2, 1, "= 9 rgb images does not divide into .* BATCH_NORM.SPLITS 2; change"),
    (3, 4, 3, 2, "BATCH_NORM.SPLITS 3 and 2 processes do not divide one another")])
def test_batches_that_processes_and_splits_share(clusters, instances, splits, size, sentence):
    config = load_config(None, [f"SAMPLER.CLUSTERS={clusters}", f"SAMPLER.INSTANCES={instances}",
                                f"BATCH_NORM.SPLITS={splits}"])
    with pytest.raises(UserError, match=sentence) if sentence else nullcontext():
        check_shares(config, size)


@pytest.mark.parametrize("method, clusters, shares", [("cclnet", 0, (1, 1)), ("pgm", 0, (2, 1)), ("cclnet", 3, (3, 2))])
def test_parts_of_batch_norm_know_the_rows_of_both_modalities(new_setup, method, clusters, shares):
    setup = new_setup(METHOD__NAME=method, BATCH_NORM__SPLITS=2, SAMPLER__RGB_CLUSTERS=clusters)
    assert setup.model_to_train("prepare").neck.shares == shares


def test_the_place_of_the_images(new_setup, monkeypatch):
    """One process asks what fits, by the bytes of all images; several on CPUs share a file, on GPUs they ask too."""
    asked = []
    monkeypatch.setattr("processor.setup.pick_cache", lambda name, size, device: asked.append((name, size)) or "ram")
    setup = new_setup(DATASET__CACHE="auto")
    images = sum(len(images) for split in (setup.data.train, setup.data.test) for images in split.values())
    assert setup.cache == setup.cache == "ram" and asked == [("auto", images * 32 * 16 * 3)]
    monkeypatch.setattr("processor.setup.join_processes", lambda device_type: one_of(2))
    for device, place in (("cpu", "mmap"), ("cuda", "ram")):
        setup = new_setup(DATASET__CACHE="device")
        setup.device = torch.device(device)
        assert setup.cache == place


def test_the_beginning_of_a_run(new_setup, monkeypatch, tmp_path):
    """A state must fit what checkpoints remember, the weights, and what the script adds."""
    made = []
    monkeypatch.setattr("processor.setup.check_wandb", lambda: made.append("checked"))
    monkeypatch.setattr("processor.setup.WandbLog", lambda *arguments: made.append(arguments))
    setup = new_setup(LOG__WANDB=True)
    setup.new_model()
    with setup.training("prepare", fresh=False, more="fact") as run:
        assert len(setup.weights) > 8 and run.facts == {**setup.facts(), "weights": setup.weights, "more": "fact"}
        assert made == ["checked", (str(tmp_path / "run"), "prepare", run.facts["config"])]
        assert run.events.others == [None]
        run.save_state("prepare", SimpleNamespace(epoch=2, state_dict=lambda: {"epoch": 2}))
    with setup.training("prepare", fresh=False, more="fact") as run:
        assert run.states == {"prepare": {"epoch": 2}}
    with pytest.raises(UserError, match="started with other more than"), setup.training("prepare", False, more="other"):
        pass


@pytest.mark.parametrize("space, stage, has_text, sentence", [
    ("text", "prepare", True, "METHOD.LINK_BY is text, but train_prepare.py has no texts"),
    ("projection", "prepare", False, "METHOD.LINK_BY is projection, but MODEL.TOWER tiny has no texts to project to"),
    ("prototype", "finetune", False, "MODEL.TOWER tiny has no texts, which train_clip.py learns"),
    ("text", "finetune", True, None), ("prototype", "prepare", False, None)])
def test_methods_that_need_what_is_not_there(space, stage, has_text, sentence):
    config = load_config(None, ["METHOD.LINK_BY", space])
    with pytest.raises(UserError, match=sentence) if sentence else nullcontext():
        check_needs(config, SimpleNamespace(has_text=has_text, kind="tiny", depths=1), stage)


def test_a_method_that_links_nothing_is_no_matter_of_where_it_links(monkeypatch):
    monkeypatch.setattr(METHODS["none"], "needs", ("feature", "projection"))
    with pytest.raises(UserError, match="NAME none asks for the projection.*; choose another method, or a CLIP"):
        check_needs(load_config(None, ["METHOD.NAME=none"]), Mock(has_text=False, depths=1), "prepare")


def test_train_clip_builds_the_fine_tune_from_what_was_learned(words, tmp_path, monkeypatch):
    """Texts are those of the learned prompts, which checkpoints hold too; labels are those of the folder."""
    labels, learned, folder = {Modality.RGB: np.arange(24) % 3, Modality.IR: np.arange(12) % 3 - 1}, {}, tmp_path / "l"
    handed = {}     # what was given to those in whose place nothing is done
    for place in ("processor.train.train", "processor.run.epoch.finish_stage", "report.write.save_stage_page"):
        name = place.rpartition(".")[2]
        monkeypatch.setattr(place, lambda *arguments, name=name: handed.update({name: arguments}) or "the state")

    def learn_prompts(model, text, images, given, settings, run, scale):
        learned.update(text=text, labels=given, settings=settings, prompts=PromptState(text, given, settings).prompts)
        return learned["prompts"]

    monkeypatch.setattr("processor.prompt.learn_prompts", learn_prompts)
    changes = {"PSEUDO_LABEL_DIR": folder, "FINETUNE__LABEL_SMOOTHING": 0.3}
    save_pseudo_labels(folder, labels, Setup(load_config(None, words(**changes)), "test").manifest)
    assert scripts.call(scripts.load("train_clip"), words(**changes)) == 0
    stage, _, images, settings, run, tester, guidance = handed["train"]
    assert stage == "finetune" and settings.epochs == 1 and guidance.smoothing == 0.3
    texts = text_features(learned["text"], learned["prompts"])
    for m in Modality:
        np.testing.assert_array_equal(guidance.labels[m], labels[m])
        np.testing.assert_array_equal(learned["labels"][m], labels[m])
        assert torch.equal(guidance.texts[m], texts[m])
        assert torch.equal(run.more["prompts"][m.value]["context"], learned["prompts"][m].context)
    assert learned["settings"] == prompt_settings(load_config(None, words()))
    assert run.facts["pseudo_labels"] == labels_digest(labels)
    assert handed["finish_stage"] == ("finetune", "the state", run, tester)
    assert handed["save_stage_page"] == ("finetune", "the state", run, tester, images)
