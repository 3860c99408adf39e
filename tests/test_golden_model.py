"""Model outputs and optimiser steps: equal to the released code's numbers."""
import copy

import numpy as np
import pytest
import torch

from configs.defaults import load_config
from data.batches import Batch
from model.cclnet import CCLNet
from model.clip import TextTower, tokenize
from model.prompt import TEMPLATES, PromptLearner
from model.released import released_name
from model.towers.clip_resnet import ClipResNet
from processor.guidance import TextGuidance
from processor.optim import lr_factor, set_lr
from processor.prompt import PromptState, prompt_step, text_features
from processor.setup import prompt_settings, train_settings
from processor.train import TrainState, train_step
from tests.tiny import epoch_of
from utils.modality import Modality

RGB, IR = Modality
STEP_LABELS = {RGB: np.array([0, 0, 1, 1, 2, 2, 5, 5]), IR: np.array([4, 4, 0, 0, 3, 3, 1, 1])}
PROMPT_LABELS = {RGB: np.array([0, 1, 2, 3, 4, 5, 0, 1]), IR: np.array([0, 1, 2, 3, 4, 4, 1, 2])}
CLUSTERS = {RGB: 6, IR: 5}
pytestmark = pytest.mark.usefixtures("one_thread")


def new_model(clip, height, width):
    return CCLNet(ClipResNet(copy.deepcopy(clip.visual), height, width))


def golden_prompts(golden, text):
    prompts = {m: PromptLearner(count, m, text) for m, count in CLUSTERS.items()}
    with torch.no_grad():
        for m, learner in prompts.items():
            learner.context.copy_(golden.draw(f"cls_ctx_{m.value}", learner.context.shape, 0.02))
    return prompts


@pytest.mark.parametrize("height, width, count", [(96, 48, 4), (288, 144, 2)])
def test_outputs(golden, golden_clip, height, width, count):
    g = golden.load(f"model_{height}x{width}")
    model = new_model(golden_clip, height, width).eval()
    text = TextTower(golden_clip)
    images = {m: golden.draw(f"image_{m.value}_{height}x{width}", (count, 3, height, width)) for m in Modality}
    texts = text_features(text, golden_prompts(golden, text))
    with torch.no_grad():
        for m in Modality:
            embedding = model.encode_image(images[m], m)
            np.testing.assert_allclose(embedding.feature, g[f"feature_{m.value}"], atol=2e-4)
            np.testing.assert_allclose(embedding.projection, g[f"projection_{m.value}"], atol=2e-4)
            np.testing.assert_allclose(texts[m], g[f"text_{m.value}"], atol=2e-4)
            np.testing.assert_array_equal(tokenize(TEMPLATES[m]), g[f"tokens_{m.value}"])
        out = model.train()(images[RGB], images[IR], ("feature", "projection"))
        for head, rows in out.items():
            np.testing.assert_allclose(torch.cat([rows[m] for m in Modality]), g[f"train_{head}"], atol=2e-4)


@pytest.mark.parametrize("name, swap_scale", [("prepare", 1.0), ("prepare_swap", 0.1), ("clip", 0.1)])
def test_training_steps(golden, golden_clip, name, swap_scale):
    """The step that the loop calls, with its optimiser, its memories and its swap, at the released settings."""
    g = golden.load(f"steps_{name}")
    model, guidance = new_model(golden_clip, 96, 48).train(), None
    config = load_config(None, ["METHOD.SWAP_SCALE", str(swap_scale)])
    if name == "clip":
        text = TextTower(golden_clip)
        old = {m: g[f"old_label_{m.value}"] for m in Modality}
        guidance = TextGuidance(text_features(text, golden_prompts(golden, text)), old,
                                config.FINETUNE.LABEL_SMOOTHING)
    settings = train_settings(config, "prepare")
    start = {m: golden.draw(f"step_memory_{m.value}", (count, model.feature_dim)) for m, count in CLUSTERS.items()}
    method = settings.method(**settings.of_method)
    method.start(epoch_of(start), config.METHOD.CROSS_EPOCH)
    optimizer = TrainState(model, settings).optimizer
    set_lr(optimizer, lr_factor(settings, 1))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3.815e-5)
    positions = {m: np.arange(8) for m in Modality}
    for step in range(3):
        images = {m: golden.draw(f"step_{m.value}{step}", (8, 3, 96, 48)) for m in Modality}
        losses = train_step(model, optimizer, method, Batch(images, STEP_LABELS, positions, positions), guidance,
                            settings.precision)
        assert set(losses) == {k[:-1] for k in g.files if k.startswith("loss_")}
        # Adam magnifies rounding: after two updates the released code's fp32 loss_i2t is itself 1e-4 from what float64
        # gives, and processors without AVX-512 land as far on the other side.
        for key, value in losses.items():
            bound = 3e-4 if step == 2 and "i2t" in key else 1e-4
            assert float(value) == pytest.approx(float(g[f"{key}{step}"]), rel=bound), (key, step)
        assert (method.links().rgb_to_ir >= 0).any()

    trained = sorted(released_name(n) for n, p in model.named_parameters() if p.grad is not None)
    assert trained == sorted(g["trained_parameters"].tolist())
    probe = golden.draw("probe", (4, 3, 96, 48))
    model.eval()
    for m in Modality:
        with torch.no_grad():
            feature = model.encode_image(probe, m).feature
        np.testing.assert_allclose(feature, g[f"probe_{m.value}"], atol=2e-4)
        np.testing.assert_allclose(method.prototypes()[m.value], g[f"memory_{m.value}"], atol=2e-4)


def test_prompt_steps(golden, golden_clip):
    """The step that the prompt stage calls, with its optimiser."""
    g = golden.load("steps_prompt")
    text = TextTower(golden_clip)
    state = PromptState(text, PROMPT_LABELS, prompt_settings(load_config(None, ["PROMPT.LR", "7.8e-5"])))
    for m, learner in golden_prompts(golden, text).items():
        state.prompts[m].load_state_dict(learner.state_dict())
    width = golden_clip.text_projection.shape[1]
    for step in range(3):
        projections = {m: golden.draw(f"prompt_img_{m.value}{step}", (8, width), 0.3) for m in Modality}
        loss = prompt_step(text, state.prompts, state.optimizer, projections, PROMPT_LABELS)
        assert float(loss) == pytest.approx(float(g[f"loss{step}"]), rel=1e-4), step
    for m in Modality:
        np.testing.assert_allclose(state.prompts[m].context.detach(), g[f"cls_ctx_{m.value}"], atol=2e-4)
