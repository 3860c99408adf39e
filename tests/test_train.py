"""The loops on five people: what learns and what does not, what is logged, resuming, and numbers that are not finite.

What an epoch computes, step by step, is compared with the released code's in test_golden_epoch.py.
"""
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import processor.prompt
import processor.train
from clustering.labels import collapse_warnings
from data.images import ImageBank
from model.clip import TextTower
from processor.features import embed
from processor.guidance import describe_scale
from processor.prompt import PromptState, learn_prompts, text_features
from processor.run.epoch import epoch_lines
from processor.train import train
from tests.tiny import LABELS, PEOPLE, TinyRun, tiny_prompt_settings, tiny_settings, tiny_tester
from utils.distributed import Processes
from utils.finite import NonFinite
from utils.modality import Modality

RGB, IR = Modality


@pytest.fixture(scope="module")
def tester(banks):
    return tiny_tester(banks)


@pytest.fixture
def named(banks):
    """The images, with names."""
    return {m: ImageBank(bank.images, paths=[f"{m.value}/{i}.jpg" for i in range(len(bank))])
            for m, bank in banks.items()}


@pytest.fixture
def text(clip):
    return TextTower(clip)


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_resumed_run_ends_with_the_same_bits(model, banks, tester, tmp_path):
    """After epoch 2 of 3, of which the last begins with a new optimiser and a new warm-up."""
    def new(settings, run):
        model.load_state_dict(start)
        run.linked = train("finetune", model, banks, settings, run, tester).linked
        return weights(model)

    start, changes = weights(model), {"restart": True, "INPUT__ERASE": 0.5, "OPTIM__WARMUP_EPOCHS": 2,
                                      "SAMPLER__ITERATIONS": 2}
    whole, first = TinyRun(tmp_path / "whole"), TinyRun(tmp_path / "parts")
    expected = new(tiny_settings(3, **changes), whole)
    new(tiny_settings(2, **changes), first)
    content = first.saved()
    assert content["stages"]["finetune"]["epoch"] == 3
    second = TinyRun(tmp_path / "parts", content)
    assert same(new(tiny_settings(3, **changes), second), expected)
    for ours, theirs in zip(second.history, whole.history, strict=True):
        assert all(ours[k] == theirs[k] for k in theirs if not re.search("second|memory|test", k))
    finished = train("finetune", model, banks, tiny_settings(3, **changes), TinyRun(tmp_path, second.saved()), tester)
    assert np.array_equal(finished.linked.similarity, second.linked.similarity)       # which its page shows
    s, row = tiny_settings(3, **changes), whole.history[0]
    steps_alone = 2 * 2 * s.clusters_per_batch * s.instances / row["images_per_second"]     # seconds
    assert 0 < steps_alone <= row["seconds"]


@pytest.mark.parametrize("step", [3, 8])
def test_a_loss_that_is_not_finite_ends_the_run(model, named, tester, tmp_path, stubs, step):
    """Epoch, step and images are named, also of an epoch's last step; nothing is saved."""
    stubs.step = lambda *_: {"loss_ir": torch.tensor(math.nan if len(stubs.steps) == step else 1.0)}
    with pytest.raises(NonFinite, match=f"loss_ir is not finite in epoch 1, iteration {step} ") as error:
        train("prepare", model, named, tiny_settings(), TinyRun(tmp_path), tester)
    position = stubs.steps[step - 1][3].positions[RGB].min()        # of its batch
    assert f"(images: rgb/{position}.jpg, " in str(error.value) and not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_replace_nothing(model, banks, tester, tmp_path, stubs, monkeypatch):
    """Checkpoint, state and labels of the epoch before stay, also where no test would have found the weights."""
    monkeypatch.setattr(type(tester), "is_due", lambda *_: False)
    run = TinyRun(tmp_path)
    train("prepare", model, banks, tiny_settings(1), run, tester)
    content = run.saved()
    before = {path: path.read_bytes() for path in (*tmp_path.glob("*.pth"), *tmp_path.glob("pseudo_labels/*"))}
    content["stages"]["prepare"]["model"]["tower.layers.layer1.0.conv1.weight"][0] = float("nan")
    with pytest.raises(NonFinite, match="weight tower.layers.layer1.0.conv1.weight is not finite in epoch 2"):
        train("prepare", model, banks, tiny_settings(2), TinyRun(tmp_path, content), tester)
    assert len(before) == 5 and {path: path.read_bytes() for path in before} == before


def test_prompts_alone_learn(model, text, banks, tmp_path):
    labels = {RGB: LABELS[RGB], IR: np.maximum(LABELS[IR] - 1, -1)}     # the first infrared person has no label
    settings = tiny_prompt_settings(PROMPT__EPOCHS=3, PROMPT__LR=0.01)
    first, run = PromptState(text, labels, settings).prompts, TinyRun(tmp_path)
    assert [len(first[m].context) for m in Modality] == [PEOPLE, PEOPLE - 1]
    start = weights(model), weights(text)
    lines, shared, images = [], [], 0
    run.log, run.processes = SimpleNamespace(info=lines.append), Processes()
    run.processes.same = lambda rows: shared.append(rows.data_ptr())
    prompts = learn_prompts(model, text, banks, labels, settings, run)
    assert same(start[0], weights(model)) and same(start[1], weights(text))
    for m in Modality:
        images += float(embed(model, banks[m], m, ("projection",), batch_size=64, precision="fp32")["projection"]
                        .norm(dim=1).mean()) / 2
    texts = sum(float(rows.norm(dim=1).mean()) / 2 for rows in text_features(text, first).values())
    scale = describe_scale(images, texts, PEOPLE, 100.0)
    assert lines[:len(scale)] == scale
    assert not any(torch.equal(first[m].context, prompts[m].context) for m in Modality)
    assert {prompts[m].context.data_ptr() for m in Modality} == set(shared)     # the first process's are everyone's
    losses = [row["loss"] for row in run.rows("prompt")]
    assert len(losses) == 3 and losses[2] < losses[0]


def test_prompts_resume_after_an_epoch(model, text, banks, tmp_path, monkeypatch):
    def step(*arguments, real=processor.prompt.prompt_step):
        steps.append(real(*arguments))
        return steps[-1] * (math.nan if len(steps) == 11 else 1)

    steps, settings, first = [], tiny_prompt_settings(PROMPT__EPOCHS=3), TinyRun(tmp_path / "b")
    expected = learn_prompts(model, text, banks, LABELS, settings, TinyRun(tmp_path / "a"))
    monkeypatch.setattr(processor.prompt, "prompt_step", step)
    with pytest.raises(NonFinite, match="loss is not finite in prompt epoch 3, iteration 3 "):
        learn_prompts(model, text, banks, LABELS, settings, first)
    first.written()
    content = first.saved()
    assert content["stages"]["prompt"]["epoch"] == 3
    again = TinyRun(tmp_path / "b", content)
    found = learn_prompts(model, text, banks, LABELS, settings, again)
    assert all(torch.equal(expected[m].context, found[m].context) for m in Modality)
    monkeypatch.setattr(processor.prompt, "embed", None)        # a finished stage does not even embed
    learn_prompts(model, text, banks, LABELS, settings, TinyRun(tmp_path / "b", again.saved()))


def test_a_stages_log_is_short_and_tells_of_every_long_epoch():
    numbers = {"loss_rgb": 0.7273, "loss_ir": 11.2, "clusters_rgb": 78, "clusters_ir": 72, "outliers_rgb": 49,
               "outliers_ir": 15, "links": 72, "links_per_cluster": 1.0, "links_per_cluster_max": 1,
               "link_accuracy": 0.64, "ari_rgb": 0.81, "ari_ir": 0.92}

    def told(epochs, seconds):
        return {epoch: epoch_lines("finetune", {"epoch": epoch, **numbers, "seconds": seconds}, epochs)
                for epoch in range(1, epochs + 1)}

    short, long = told(44, 12.2), told(44, 31.0)
    assert [epoch for epoch, lines in short.items() if lines] == [1, 5, 10, 15, 20, 25, 30, 35, 40, 44]
    assert short[40] == ["finetune 40/44 | loss rgb 0.727 ir 11.2 | 12 s, 49 s left\n"
                         "    clusters rgb 78 ir 72 | outliers 49 15 | 72 links, 64 % right | ARI 0.81 0.92"]
    assert short[44][0].startswith("finetune 44/44 | loss rgb 0.727 ir 11.2 | 12 s\n")
    assert long[41] == ["finetune 41/44 | loss rgb 0.727 ir 11.2 | 31 s, 93 s left"] and all(long.values())
    assert all(told(3, 0.4).values())


@pytest.mark.parametrize("labels, words", [
    (np.zeros(20, int), "all clustered rgb images are in one cluster.*smaller CLUSTER.EPS"),
    (np.where(np.arange(40) < 3, np.arange(40), -1), "92% of the rgb images are outliers.*larger CLUSTER.EPS"),
    (np.where(np.arange(20) < 2, np.arange(20), -1), None)])
def test_collapse_is_said_in_words(labels, words):
    warnings = collapse_warnings({RGB: labels, IR: np.arange(20) % 4})
    assert re.fullmatch(f".*{words}.*", *warnings) if words else not warnings
