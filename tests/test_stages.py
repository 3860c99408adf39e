"""The loops themselves, on tiny data: what moves, what does not, and when."""
import copy
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch

import processor.contrast as contrast
import processor.features as features
from data.augment import Augmentation
from data.images import ImageBank
from model.cclnet import CCLNet
from model.clip import TextTower, load_clip
from processor.contrast import ContrastSettings, ContrastStage, TextGuidance
from processor.finite import NonFinite, non_finite_report
from processor.prompt import PromptSettings, PromptStage, text_features
from processor.pseudo_labels import ClusterSettings, collapse_warnings, make_pseudo_labels
from utils.errors import UserError
from utils.modality import Modality

HEIGHT, WIDTH, PEOPLE, EACH = 32, 16, 5, 6
SETTINGS = ContrastSettings(epochs=3, cluster=ClusterSettings(k1=5, k2=2), swap_epoch=3, clusters_per_batch=2,
                            instances=2, augmentation={m: Augmentation(flip=0.5) for m in Modality}, warmup_epochs=1)


@pytest.fixture
def clip(tiny_clip_file):
    return load_clip(tiny_clip_file)


@pytest.fixture
def model(clip):
    return CCLNet(clip.visual, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def banks():
    """Five people of clearly different patterns, six noisy images each and modality."""
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (PEOPLE, HEIGHT // 4, WIDTH // 4, 3)).repeat(4, 1).repeat(4, 2)
    images = np.clip(looks.repeat(EACH, 0) + rng.normal(0, 8, (PEOPLE * EACH, HEIGHT, WIDTH, 3)), 0, 255)
    return {m: ImageBank(images.astype(np.uint8)) for m in Modality}


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(before, after):
    return all(torch.equal(before[k], after[k]) for k in before)


def test_contrast_stage(model, banks, monkeypatch):
    swapped = []
    monkeypatch.setattr(contrast, "swap", lambda *a, real=contrast.swap: swapped.append(1) or real(*a))
    start, reports = weights(model), []
    for report in ContrastStage(model, banks, SETTINGS).epochs():
        reports.append((report, len(swapped)))
    assert [r.epoch for r, _ in reports] == [1, 2, 3]
    for report, _ in reports:
        labelled = max(int((labels >= 0).sum()) for labels in report.labels.values())
        assert report.iterations == labelled // 4 + 1
        assert set(report.losses) == {"loss_rgb", "loss_ir"}
    counts = [count for _, count in reports]
    assert counts[:2] == [0, 0] and counts[2] == reports[2][0].iterations       # swapping starts at its epoch
    end = weights(model)
    assert all(torch.equal(start[k], end[k]) for k in start if k.startswith("attnpool.") or k == "neck.bias")
    learned = [n for n, _ in model.named_parameters() if not n.startswith("attnpool.") and n != "neck.bias"]
    assert not any(torch.equal(start[n], end[n]) for n in learned)


def test_same_seed_same_run(clip, banks):
    runs = []
    for _ in range(2):
        model = CCLNet(clip.visual, HEIGHT, WIDTH)
        *_, report = ContrastStage(model, banks, dataclasses.replace(SETTINGS, epochs=2)).epochs()
        runs.append((report.losses, weights(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


def test_first_epoch_follows_the_clusters_of_the_untrained_model(model, banks):
    expected = make_pseudo_labels(features.embed(model, banks[Modality.IR], Modality.IR), Modality.IR, SETTINGS.cluster)
    report = next(ContrastStage(model, banks, SETTINGS).epochs())
    np.testing.assert_array_equal(report.labels[Modality.IR], expected.labels)
    members = expected.labels >= 0
    assert members.sum() >= 20 and expected.clusters >= 3       # the drawn people are separable
    torch.testing.assert_close(expected.centroids.norm(dim=1), torch.ones(expected.clusters))


def test_prompt_stage_moves_prompts_alone(model, clip, banks):
    text = TextTower(clip)
    labels = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}
    labels[Modality.IR][:EACH] = -1
    labels[Modality.IR][EACH:] -= 1
    settings = PromptSettings(epochs=3, batch_size=8, lr=0.01)
    stage = PromptStage(model, text, banks, labels, settings)
    prompts = stage.prompts
    assert [len(prompts[m].context) for m in Modality] == [PEOPLE, PEOPLE - 1]
    start = weights(model), weights(text), {m: weights(prompts[m]) for m in Modality}
    reports = list(stage.epochs())
    assert same(start[0], weights(model)) and same(start[1], weights(text))
    assert not any(torch.equal(start[2][m]["context"], prompts[m].context) for m in Modality)
    assert reports[-1].loss < reports[0].loss


def test_first_features_of_the_fine_tuning_are_those_of_the_prompt_stage(model, clip, banks, monkeypatch):
    labels = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}
    prompts = PromptStage(model, TextTower(clip), banks, labels, PromptSettings(epochs=1, batch_size=8))
    list(prompts.epochs())
    for m in Modality:
        assert torch.equal(prompts.features[m], features.embed(model, banks[m], m))
    settings = dataclasses.replace(SETTINGS, epochs=1)
    expected = next(ContrastStage(copy.deepcopy(model), banks, settings).epochs())
    monkeypatch.setattr(contrast, "embed", lambda *args, **options: pytest.fail("embedded twice"))
    report = next(ContrastStage(model, banks, settings, None, prompts.features).epochs())
    assert report.losses == expected.losses


def test_fine_tuning_moves_the_image_side_alone(model, clip, banks):
    text = TextTower(clip)
    labels = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}
    prompts = PromptStage(model, text, banks, labels, PromptSettings()).prompts
    guidance = TextGuidance(text_features(text, prompts), labels)
    start = weights(model), weights(text), {m: weights(prompts[m]) for m in Modality}
    *_, report = ContrastStage(model, banks, dataclasses.replace(SETTINGS, epochs=2), guidance).epochs()
    assert set(report.losses) == {"loss_rgb", "loss_ir", "loss_i2t_rgb", "loss_i2t_ir"}
    assert same(start[1], weights(text)) and all(same(start[2][m], weights(prompts[m])) for m in Modality)
    end = weights(model)
    assert not any(torch.equal(start[0][n], end[n]) for n, p in model.named_parameters() if p.requires_grad)


def test_text_of_a_prompt_does_not_depend_on_the_others(model, clip, banks):
    text = TextTower(clip)
    prompts = PromptStage(model, text, banks, {m: np.arange(4) for m in Modality}, PromptSettings()).prompts
    for m in Modality:
        with torch.no_grad():
            torch.testing.assert_close(text(prompts[m]())[2:3], text(prompts[m](torch.tensor([2]))))


def test_guidance_reads_train_prepares_labels_not_the_epochs():
    features = {m: torch.eye(3) for m in Modality}
    guidance = TextGuidance(features, {m: np.array([2, -1, 0]) for m in Modality}, smoothing=0.0)
    loss = guidance.loss(torch.eye(3)[[2, 1]] * 50, Modality.RGB, np.array([0, 1]))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(guidance.loss(torch.eye(3)[[2]], Modality.RGB, np.array([1]))) == 0


def test_non_finite_loss_is_named(model, banks):
    settings = dataclasses.replace(SETTINGS, lr=1e30, epochs=2)
    with pytest.raises(FloatingPointError, match="not finite"):
        list(ContrastStage(model, banks, settings).epochs())


@pytest.mark.parametrize("stop_after", [1, 9, 15])
def test_contrast_stage_goes_on_to_the_bit(clip, banks, stop_after):
    """Stop after some iteration, in whichever epoch, carry the state over, and end with the same weights."""
    whole = CCLNet(clip.visual, HEIGHT, WIDTH)
    expected = [(r.epoch, r.losses) for r in ContrastStage(whole, banks, SETTINGS).epochs()]

    class Enough(Exception):
        pass

    steps = []

    def stop():
        steps.append(1)
        if len(steps) == stop_after:
            raise Enough

    first = ContrastStage(CCLNet(clip.visual, HEIGHT, WIDTH), banks, SETTINGS)
    with pytest.raises(Enough):
        list(first.epochs(stop))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = ContrastStage(CCLNet(clip.visual, HEIGHT, WIDTH), banks, SETTINGS)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    reports = [(r.epoch, r.losses) for r in second.epochs()]
    assert reports == expected[-len(reports):] and same(weights(whole), weights(second.model))


def poisoned(banks, modality, position):
    """Banks with names, and a normalisation that makes one image NaN."""
    named = {m: ImageBank(bank.images, paths=[f"{m.value}/{i}.jpg" for i in range(len(bank))])
             for m, bank in banks.items()}
    target = named[modality].batch([position])[0].float().mean()

    def normalise(images, real=features.normalise):
        images, out = images.float(), real(images)
        out[(images.mean((1, 2, 3)) - target).abs() < 1e-6] = float("nan")
        return out

    return named, normalise


def test_non_finite_feature_names_its_image(model, banks, monkeypatch, tmp_path):
    named, normalise = poisoned(banks, Modality.RGB, 7)
    monkeypatch.setattr(features, "normalise", normalise)
    with pytest.raises(UserError, match=r"the feature of 1 rgb image is not finite in epoch 1; .*non_finite.json"):
        with non_finite_report(tmp_path):
            list(ContrastStage(model, named, SETTINGS).epochs())
    record = json.loads((tmp_path / "non_finite.json").read_text())
    assert record == {"term": "the feature of 1 rgb image", "epoch": 1,
                      "rgb": {"images": 1, "positions": [7], "paths": ["rgb/7.jpg"]}}


def test_non_finite_loss_names_epoch_iteration_and_images(model, banks, monkeypatch, tmp_path):
    named, _ = poisoned(banks, Modality.RGB, 0)
    real, calls = contrast.contrast_losses, []

    def losses(*arguments):
        values, found = real(*arguments)
        calls.append(arguments[4])
        if len(calls) == 3:
            found[Modality.RGB] = found[Modality.RGB].detach().clone()
            found[Modality.RGB][1] = float("inf")
            values["loss_rgb"] = values["loss_rgb"] * float("nan")
        return values, found

    monkeypatch.setattr(contrast, "contrast_losses", losses)
    with pytest.raises(UserError, match="loss_rgb is not finite in epoch 1, iteration 3; "):
        with non_finite_report(tmp_path):
            list(ContrastStage(model, named, SETTINGS).epochs())
    record, position = json.loads((tmp_path / "non_finite.json").read_text()), int(calls[2][Modality.RGB][1])
    assert record["rgb"] == {"images": 1, "positions": [position], "paths": [f"rgb/{position}.jpg"]}
    assert record["losses"]["loss_rgb"] == "nan" and float(record["losses"]["loss_ir"]) > 0


def test_broken_weights_are_never_saved(model, banks):
    stage = ContrastStage(model, banks, SETTINGS)
    steps = []

    def break_it():
        steps.append(1)
        if len(steps) == 2:
            next(model.trunk.parameters()).data[0] = float("nan")
            stage.state_dict()

    with pytest.raises(NonFinite, match="weight trunk.layer1.0.conv1.weight is not finite in epoch 1, iteration 2"):
        list(stage.epochs(break_it))


def test_non_finite_prompt_loss_is_named(model, clip, banks):
    text = TextTower(clip)
    stage = PromptStage(model, text, banks, {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality},
                        PromptSettings(epochs=2, batch_size=8))
    stage.prompts[Modality.RGB].context.data[:] = float("inf")
    with pytest.raises(NonFinite, match="prompt loss is not finite in epoch 1, iteration 1"):
        list(stage.epochs())


@pytest.mark.parametrize("labels, words", [
    (np.zeros(20, int), "all clustered rgb images are in one cluster.*smaller CLUSTER.EPS"),
    (np.where(np.arange(40) < 3, np.arange(40), -1), "92% of the rgb images are outliers.*larger CLUSTER.EPS"),
])
def test_collapse_is_said_in_words(labels, words):
    healthy = np.arange(20) % 4
    warnings = collapse_warnings({Modality.RGB: labels, Modality.IR: healthy})
    assert len(warnings) == 1 and re.search(words, warnings[0])
    assert collapse_warnings({m: healthy for m in Modality}) == []
