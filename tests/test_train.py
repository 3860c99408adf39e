"""The loops themselves, on tiny data: what moves, what does not, and when."""
import copy
import io
import re
import time

import numpy as np
import pytest
import torch

import loss.cclnet as cclnet
import loss.cross_memory as cross_memory
import processor.features as features
import processor.guidance
import processor.prompt as prompt
import processor.train
from data.augment import normalise
from data.images import ImageBank
from data.pseudo_labels import collapse_warnings, make_pseudo_labels
from model.clip import TextTower, tokenize
from model.prompt import TEMPLATES
from processor.guidance import TextGuidance, describe_scale, scale_lines
from processor.optim import warmup_cosine_lr
from processor.prompt import PromptState, learn_prompts, text_features
from processor.train import Clock, TrainState, train
from tests.tiny import (
    EACH,
    HEIGHT,
    IMAGES,
    PEOPLE,
    WIDTH,
    TinyRun,
    one_of,
    tiny_model,
    tiny_prompt_settings,
    tiny_settings,
    tiny_tester,
)
from utils.errors import UserError
from utils.finite import NonFinite, RunningMeans
from utils.modality import Modality

LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}


@pytest.fixture(scope="module")
def tester(banks):
    return tiny_tester(banks)


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(before, after):
    return all(torch.equal(before[k], after[k]) for k in before)


def test_training(model, banks, tester, tmp_path, monkeypatch):
    swapped = []
    real = cclnet.swap
    monkeypatch.setattr(cclnet, "swap", lambda *a: swapped.append(run.history and len(run.history)) or real(*a))
    start, run = weights(model), TinyRun(tmp_path)
    train("prepare", model, banks, tiny_settings(), run, tester)
    rows = run.rows("prepare")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all({k for k in row if k.startswith("loss")} == {"loss_rgb", "loss_ir"} for row in rows)
    labelled = max(IMAGES - rows[2][f"outliers_{m.value}"] for m in Modality)
    assert swapped == [2] * (labelled // 4 + 1)       # in the third epoch alone, once per step
    assert [row["matched"] > 0 for row in rows] == [False, False, True]
    end = weights(model)
    assert all(torch.equal(start[k], end[k]) for k in start if "attnpool." in k or k == "neck.bias")
    learned = [n for n, _ in model.named_parameters() if "attnpool." not in n and n != "neck.bias"]
    assert not any(torch.equal(start[n], end[n]) for n in learned)


def test_same_seed_same_run(tiny_clip_file, banks, tester, tmp_path):
    runs = []
    for name in ("a", "b"):
        model, run = tiny_model(tiny_clip_file), TinyRun(tmp_path / name)
        train("prepare", model, banks, tiny_settings(epochs=2), run, tester)
        runs.append((run.history[-1]["loss_rgb"], weights(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


def test_first_epoch_follows_the_clusters_of_the_untrained_model(model, banks, tester, tmp_path):
    embedded = features.embed(model, banks[Modality.IR], Modality.IR, batch_size=64, precision="fp32")["feature"]
    expected = make_pseudo_labels(embedded, Modality.IR, tiny_settings().cluster)
    train("prepare", model, banks, tiny_settings(epochs=1), TinyRun(tmp_path), tester)
    np.testing.assert_array_equal(np.load(tmp_path / "pseudo_labels/train_ir_resized_pseudo_label.npy"), expected)
    assert (expected >= 0).sum() >= 20 and expected.max() >= 2       # the synthetic people are separable


def test_prompts_alone_learn(model, clip, banks, tmp_path):
    text, labels = TextTower(clip), copy.deepcopy(LABELS)
    labels[Modality.IR][:EACH] = -1
    labels[Modality.IR][EACH:] -= 1
    settings = tiny_prompt_settings(PROMPT__EPOCHS=3, PROMPT__LR=0.01)
    first = PromptState(text, labels, settings).prompts
    assert [len(first[m].context) for m in Modality] == [PEOPLE, PEOPLE - 1]
    start, run = (weights(model), weights(text)), TinyRun(tmp_path)
    prompts = learn_prompts(model, text, banks, labels, settings, run)
    assert same(start[0], weights(model)) and same(start[1], weights(text))
    assert not any(torch.equal(first[m].context, prompts[m].context) for m in Modality)
    losses = [row["loss"] for row in run.rows("prompt")]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_prompts_learn_from_batches_of_their_own_in_each_epoch(model, clip, banks, tmp_path, monkeypatch):
    """Projections and labels of a step are those of the same images; every epoch has another order of them."""
    positions = {m: torch.arange(IMAGES)[:, None].float() for m in Modality}
    orders = {}

    def step(text, prompts, optimizer, projections, labels):
        found = {m: projections[m][:, 0].long().numpy() for m in Modality}
        for m in Modality:
            np.testing.assert_array_equal(labels[m], LABELS[m][found[m]])
        orders.setdefault(len(run.rows("prompt")) + 1, []).extend(found[Modality.RGB])
        return next(iter(prompts[Modality.RGB].parameters())).sum()

    monkeypatch.setattr(prompt, "embed", lambda model, bank, m, *_, **__: {"projection": positions[m]})
    monkeypatch.setattr(prompt, "prompt_step", step)
    run = TinyRun(tmp_path)
    learn_prompts(model, TextTower(clip), banks, LABELS, tiny_prompt_settings(PROMPT__EPOCHS=2), run)
    assert sorted(orders[1]) == sorted(orders[2]) == list(range(IMAGES)) and orders[1] != orders[2]


def test_prompts_learn_at_the_rate_of_each_epoch(model, clip, banks, tmp_path, monkeypatch, caplog):
    """The rates are those that `warmup_cosine_lr` gives, which has golden vectors; the log says the same, and times."""
    rates, estimates, started = [], [], time.perf_counter()

    def step(text, prompts, optimizer, *rest, real=prompt.prompt_step):
        rates.append(optimizer.param_groups[0]["lr"])
        return real(text, prompts, optimizer, *rest)

    monkeypatch.setattr(prompt, "prompt_step", step)
    monkeypatch.setattr(prompt, "duration", lambda seconds: estimates.append(seconds) or "long")
    settings, run = tiny_prompt_settings(PROMPT__EPOCHS=3, PROMPT__WARMUP_EPOCHS=1), TinyRun(tmp_path)
    with caplog.at_level("INFO", "tiny"):
        learn_prompts(model, TextTower(clip), banks, LABELS, settings, run)
    took, rows = time.perf_counter() - started, run.rows("prompt")
    expected = [warmup_cosine_lr(epoch, 3, settings.lr, settings.lr_min, settings.warmup_lr, 1) for epoch in (1, 2, 3)]
    assert rates == [rate for rate in expected for _ in range(4)] and len(set(expected)) == 3   # 30 images in eights
    assert [row["lr"] for row in rows] == expected
    assert 0 < sum(row["seconds"] for row in rows) < took
    assert len(estimates) == 1 and 3 * rows[0]["seconds"] <= estimates[0] < 3 * took
    assert caplog.messages[1].startswith("estimate of prompt: long in all")      # after the first epoch's line


def test_prompts_are_the_first_processes(model, clip, banks, tmp_path, monkeypatch):
    run, shared = TinyRun(tmp_path), []
    monkeypatch.setattr(run.processes, "same", lambda rows: shared.append(rows.data_ptr()) or rows)
    prompts = learn_prompts(model, TextTower(clip), banks, LABELS, tiny_prompt_settings(PROMPT__EPOCHS=1), run)
    assert {prompts[m].context.data_ptr() for m in Modality} <= set(shared)


def test_prompts_that_are_not_finite_are_not_saved(clip):
    state = PromptState(TextTower(clip), LABELS, tiny_prompt_settings())
    state.prompts[Modality.IR].context.data[2, 1, 0] = torch.nan
    state.epoch = 3
    with pytest.raises(NonFinite, match="context is not finite in prompt epoch 2;"):
        state.state_dict()


def test_prompts_resume_after_an_epoch(model, clip, banks, tmp_path):
    text, settings = TextTower(clip), tiny_prompt_settings(PROMPT__EPOCHS=3)
    expected = learn_prompts(model, text, banks, LABELS, settings, TinyRun(tmp_path / "a"))
    first = TinyRun(tmp_path / "b")
    first.stop_if_asked = lambda: len(first.history) == 2 and (_ for _ in ()).throw(KeyError("enough"))
    with pytest.raises(KeyError):
        learn_prompts(model, text, banks, LABELS, settings, first)
    content = first.state_file.load()[0]
    assert content["stages"]["prompt"]["epoch"] == 3
    resumed = learn_prompts(model, text, banks, LABELS, settings, TinyRun(tmp_path / "b", content))
    assert all(torch.equal(expected[m].context, resumed[m].context) for m in Modality)


def test_fine_tuning_moves_the_image_side_alone(model, clip, banks, tester, tmp_path):
    text = TextTower(clip)
    prompts = PromptState(text, LABELS, tiny_prompt_settings()).prompts
    guidance, run = TextGuidance(text_features(text, prompts), LABELS, 0.1), TinyRun(tmp_path)
    start = weights(model), weights(text), {m: weights(prompts[m]) for m in Modality}
    train("finetune", model, banks, tiny_settings(epochs=2), run, tester, guidance, {"prompts": {"rgb": {}, "ir": {}}})
    assert {k for k in run.history[-1] if k.startswith("loss")} == {"loss_rgb", "loss_ir", "loss_i2t_rgb",
                                                                    "loss_i2t_ir"}
    assert same(start[1], weights(text)) and all(same(start[2][m], weights(prompts[m])) for m in Modality)
    end = weights(model)
    assert not any(torch.equal(start[0][n], end[n]) for n, p in model.named_parameters() if p.requires_grad)
    content = torch.load(tmp_path / "model_last.pth", weights_only=True)
    assert content["prompts"] == {"rgb": {}, "ir": {}} and content["stage"] == "finetune"
    assert content["model"] == {"kind": "clip_resnet", "height": HEIGHT, "width": WIDTH, "stride": 16, "heads": 8}


def test_text_of_a_prompt_does_not_depend_on_the_others(clip):
    text = TextTower(clip)
    prompts = PromptState(text, {m: np.arange(4) for m in Modality}, tiny_prompt_settings()).prompts
    for m in Modality:
        with torch.no_grad():
            torch.testing.assert_close(text(prompts[m]())[2:3], text(prompts[m](torch.tensor([2]))))


@pytest.mark.parametrize("measured", [7, 256])
def test_norms_are_means_over_some_images_and_both_templates(model, clip, banks, monkeypatch, measured):
    banks = {m: ImageBank(banks[m].images // (1 if m is Modality.RGB else 4)) for m in Modality}
    text, norms = TextTower(clip), {"images": [], "texts": []}
    monkeypatch.setattr(processor.guidance, "MEASURED_IMAGES", measured)
    positions = np.linspace(0, IMAGES - 1, 7).astype(int) if measured == 7 else np.arange(IMAGES)
    with torch.no_grad():
        for m in Modality:
            images = normalise(banks[m].batch(positions))
            norms["images"].append(model.eval().encode_image(images, m).projection.norm(dim=1).mean())
            tokens = tokenize(TEMPLATES[m], text.context_length)
            end = int((tokens != 0).sum())      # the rest is padding
            norms["texts"].append(text(text.token_embedding(tokens[:, :end])).norm())
    images, texts = (float(sum(norms[name]) / 2) for name in ("images", "texts"))
    found = scale_lines(model, text, banks, 5, 100.0, batch_size=8, precision="fp32")
    assert found[0] == describe_scale(images, texts, 5, 100.0)[0]
    assert abs(float(norms["images"][0] - norms["images"][1])) > 0.02       # so that a mean is not one of them
    assert abs(float(norms["texts"][0] - norms["texts"][1])) > 0.02


def test_guidance_reads_train_prepares_labels_not_the_epochs():
    guidance = TextGuidance({m: torch.eye(3) for m in Modality}, {m: np.array([2, -1, 0]) for m in Modality}, 0.0)
    rows = {m: torch.eye(3)[[2, 1]] * 50 for m in Modality}
    positions = {Modality.RGB: np.array([0, 1]), Modality.IR: np.array([1, 1])}
    losses = guidance.losses(rows, positions)
    assert float(losses["loss_i2t_rgb"]) == pytest.approx(0, abs=1e-6) and float(losses["loss_i2t_ir"]) == 0
    wrong = guidance.losses(rows, {m: np.array([2, 1]) for m in Modality})
    assert float(wrong["loss_i2t_rgb"]) > 10


@pytest.mark.parametrize("batch", [[0, 1, 2, 3], [3, 3, 0, 2], [3, 3, 3, 1], [3, 3, 3, 3]])
def test_guidance_of_two_processes_has_the_mean_of_the_batchs_loss(batch):
    """Image 1 shows cluster 0, image 3 none, which may leave a process without any labelled image."""
    texts = {m: torch.randn(3, 8, generator=torch.Generator().manual_seed(i)) for i, m in enumerate(Modality)}
    guidance = TextGuidance(texts, {m: np.array([2, 0, 1, -1]) for m in Modality}, 0.1)
    rows = {m: torch.randn(4, 8, generator=torch.Generator().manual_seed(5)) for m in Modality}
    positions = {m: np.array(batch) for m in Modality}
    whole, parts = guidance.losses(rows, positions), []
    for rank in range(2):
        processes = one_of(2, rank)
        parts.append(guidance.losses({m: rows[m][processes.share(4)] for m in Modality}, positions, processes))
    for name, loss in whole.items():
        assert float(sum(part[name] for part in parts) / 2) == pytest.approx(float(loss), rel=1e-6)
    assert batch == [3, 3, 3, 3] or min(map(float, whole.values())) > 0


def test_a_clusters_text_is_the_mean_of_its_images_unit_texts():
    texts = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    guidance = TextGuidance({m: texts for m in Modality}, {m: np.array([0, 1, 1, -1, -1]) for m in Modality}, 0.1)
    found = guidance.cluster_texts({m: np.array([0, 0, 2, 0, 1]) for m in Modality})
    for rows in found.values():
        torch.testing.assert_close(rows, torch.tensor([[0.2, 0.6], [0.0, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize("stop_after", [1, 9, 17])
def test_resume_to_the_bit(tiny_clip_file, banks, tester, tmp_path, stop_after):
    """Stop after some step, in whichever epoch, carry the state over, and end with the same weights and numbers."""
    whole, complete = tiny_model(tiny_clip_file), TinyRun(tmp_path / "whole")
    train("prepare", whole, banks, tiny_settings(), complete, tester)
    first = TinyRun(tmp_path / "run", stop_after=stop_after)
    with pytest.raises(KeyError, match="enough"):
        train("prepare", tiny_model(tiny_clip_file), banks, tiny_settings(), first, tester)
    buffer = io.BytesIO(first.state_file.path.read_bytes()[:-32])
    content = torch.load(buffer, weights_only=True)
    second, model = TinyRun(tmp_path / "run", content), tiny_model(tiny_clip_file)
    train("prepare", model, banks, tiny_settings(), second, tester)
    ours, theirs = ([{k: v for k, v in row.items() if not re.search("second|memory", k)} for row in run.history]
                    for run in (second, complete))
    assert ours == theirs and same(weights(whole), weights(model))
    # Speed and time are those of the whole epoch, also where its larger part was before the stop.
    speeds = [run.history[-1]["images_per_second"] for run in (second, complete)]
    assert 0.1 < speeds[0] / speeds[1] < 10


def test_what_was_lost_is_written_again(model, banks, tester, tmp_path):
    train("prepare", model, banks, tiny_settings(epochs=1), first := TinyRun(tmp_path), tester)
    label, checkpoint = tmp_path / "pseudo_labels/train_ir_resized_pseudo_label.npy", tmp_path / "prepare_last.pth"
    before = label.read_bytes(), torch.load(checkpoint, weights_only=True)
    label.unlink()
    checkpoint.unlink()
    train("prepare", model, banks, tiny_settings(epochs=1), TinyRun(tmp_path, first.state_file.load()[0]), tester)
    after = torch.load(checkpoint, weights_only=True)
    assert label.read_bytes() == before[0] and same(before[1]["state_dict"], after["state_dict"])
    assert after["metrics"] == before[1]["metrics"] and after["epoch"] == 1


@pytest.mark.parametrize("collapsed_in, ends", [({1, 2, 3}, 3), ({2, 3, 5, 6}, None), ({2, 4, 5, 6}, 6)])
def test_collapse_ends_the_run(tiny_clip_file, banks, tester, tmp_path, monkeypatch, collapsed_in, ends):
    """Three epochs in a row with one cluster end it, no labels are left for train_clip.py; a key lets it go on."""
    calls = []

    def one_cluster(*arguments, real=processor.train.make_pseudo_labels):
        calls.append(1)
        labels = real(*arguments)
        return np.minimum(labels, 0) if (len(calls) + 1) // 2 in collapsed_in else labels

    monkeypatch.setattr(processor.train, "make_pseudo_labels", one_cluster)
    run = TinyRun(tmp_path)
    strict = tiny_settings(epochs=6, allow_collapse=False)
    if ends is None:
        train("prepare", tiny_model(tiny_clip_file), banks, strict, run, tester)
        return
    with pytest.raises(UserError, match=f"collapsed: in 3 epochs in a row, the last of them epoch {ends}, "):
        train("prepare", tiny_model(tiny_clip_file), banks, strict, run, tester)
    assert not run.labels_folder.exists() and len(run.history) == ends
    again = TinyRun(tmp_path, run.state_file.load()[0])
    if ends == 6:       # a finished run is refused again, and still leaves no labels
        with pytest.raises(UserError, match="collapsed"):
            train("prepare", tiny_model(tiny_clip_file), banks, strict, again, tester)
        assert not run.labels_folder.exists()
    train("prepare", tiny_model(tiny_clip_file), banks, tiny_settings(epochs=6), again, tester)
    assert run.labels_folder.exists()


def named(banks):
    return {m: ImageBank(bank.images, paths=[f"{m.value}/{i}.jpg" for i in range(len(bank))])
            for m, bank in banks.items()}


def test_non_finite_feature_names_its_image(model, banks, tester, monkeypatch, tmp_path):
    target = banks[Modality.RGB].batch([7])[0].float().mean()

    def normalise(images, name, real=features.normalise):
        images, out = images.float(), real(images, name)
        out[(images.mean((1, 2, 3)) - target).abs() < 1e-6] = float("nan")
        return out

    monkeypatch.setattr(features, "normalise", normalise)
    with pytest.raises(NonFinite, match=r"the feature of 1 rgb image is not finite in epoch 1 \(images: rgb/7.jpg\); "):
        train("prepare", model, named(banks), tiny_settings(), TinyRun(tmp_path), tester)


@pytest.mark.parametrize("swap_epoch", [1, 3])
def test_non_finite_loss_names_epoch_iteration_and_images(model, banks, tester, monkeypatch, tmp_path, swap_epoch):
    """Also where the broken numbers reach the matching of clusters before anyone has looked."""
    calls = []

    def losses(self, found, labels, real=cross_memory.CrossMemory.losses):
        calls.append(labels)
        values = real(self, found, labels)
        return {**values, "loss_ir": values["loss_ir"] * float("nan")} if len(calls) >= 3 else values

    monkeypatch.setattr(cross_memory.CrossMemory, "losses", losses)
    with pytest.raises(NonFinite, match="loss_ir is not finite in epoch 1, iteration 3 ") as error:
        train("prepare", model, named(banks), tiny_settings(MEMORY__SWAP_EPOCH=swap_epoch), TinyRun(tmp_path), tester)
    assert re.search(r"\(images: rgb/\d+.jpg, .*ir/\d+.jpg", str(error.value))


def test_a_non_finite_loss_of_an_epochs_last_step_is_found(model, banks, tester, monkeypatch, tmp_path):
    factors = iter([1.0] * 7 + [float("nan")])          # 30 images, 4 in a batch

    def losses(self, found, labels, real=cross_memory.CrossMemory.losses):
        return {name: value * next(factors) for name, value in sorted(real(self, found, labels).items())[:1]}

    monkeypatch.setattr(cross_memory.CrossMemory, "losses", losses)
    with pytest.raises(NonFinite, match="loss_ir is not finite in epoch 1, iteration 8 "):
        train("prepare", model, named(banks), tiny_settings(), TinyRun(tmp_path), tester)


def test_losses_are_looked_at_now_and_then_and_at_the_end(model, banks, tester, monkeypatch, tmp_path):
    """Each look waits for a GPU."""
    steps = []
    monkeypatch.setattr(processor.train, "CHECK_EVERY", 3)
    monkeypatch.setattr(RunningMeans, "add", lambda self, step, *losses, real=RunningMeans.add: (
        steps.append(step), real(self, step, *losses)))
    monkeypatch.setattr(RunningMeans, "check", lambda *arguments: steps.append("look"))
    train("prepare", model, named(banks), tiny_settings(epochs=1), TinyRun(tmp_path), tester)
    assert steps == [1, 2, 3, "look", 4, 5, 6, "look", 7, 8, "look"]


def test_a_clock_begins_where_the_earlier_run_ended(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", iter([10.0, 14.0, 20.0, 21.5]).__next__)
    assert Clock().seconds() == 4.0 and Clock(30.0).seconds() == 31.5


def test_broken_weights_are_never_saved(model, banks, tester, tmp_path):
    run = TinyRun(tmp_path, stop_after=2)
    state = TrainState(model, tiny_settings())
    next(model.tower.layers.parameters()).data[0] = float("nan")
    with pytest.raises(NonFinite, match="weight tower.layers.layer1.0.conv1.weight is not finite in epoch 1"):
        run.save_state("prepare", state.state_dict())
    assert not run.state_file.path.exists()


def test_non_finite_prompt_loss_is_named(model, clip, banks, monkeypatch, tmp_path):
    def broken(*arguments, real=prompt.prompt_step):
        return real(*arguments) * float("inf")

    monkeypatch.setattr(prompt, "prompt_step", broken)
    with pytest.raises(NonFinite, match="prompt loss is not finite in epoch 1, iteration 1 "):
        learn_prompts(model, TextTower(clip), banks, LABELS, tiny_prompt_settings(), TinyRun(tmp_path))
    factors = iter([1.0, np.nan, 1.0, 1.0])         # of an epoch's steps: 30 images in eights
    monkeypatch.setattr(prompt, "prompt_step", lambda *arguments: torch.tensor(next(factors)))
    with pytest.raises(NonFinite, match="prompt loss is not finite in epoch 1, iteration 2 "):
        learn_prompts(model, TextTower(clip), banks, LABELS, tiny_prompt_settings(), TinyRun(tmp_path / "second"))


@pytest.mark.parametrize("labels, words", [
    (np.zeros(20, int), "all clustered rgb images are in one cluster.*smaller CLUSTER.EPS"),
    (np.where(np.arange(40) < 3, np.arange(40), -1), "92% of the rgb images are outliers.*larger CLUSTER.EPS"),
])
def test_collapse_is_said_in_words(labels, words):
    healthy = np.arange(20) % 4
    warnings = collapse_warnings({Modality.RGB: labels, Modality.IR: healthy})
    assert len(warnings) == 1 and re.search(words, warnings[0])
    assert collapse_warnings({m: healthy for m in Modality}) == []
    nine_in_ten = np.where(np.arange(20) < 2, np.arange(20), -1)
    assert collapse_warnings({m: nine_in_ten for m in Modality}) == []
