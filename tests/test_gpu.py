"""Training, prompts and retrieval on a real GPU, each compared with the host, whose numbers the golden tests hold.

What is wrong with devices alone fake tensors find without one (test_fake_cuda.py).
"""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from data.batches import Batches, PromptBatches
from data.images import ImageBank
from loss.cluster_memory import cluster_means
from loss.method import EpochStart
from model.clip import TextTower
from model.replay import ReplayedNetwork
from processor.evaluate import evaluate
from processor.features import embed
from processor.guidance import TextGuidance
from processor.prompt import PromptState, prompt_step
from processor.train import TrainState, train, train_step
from tests.test_fake_cuda import AUGMENTATION, BOTH, CAMERAS, LABELS
from tests.tiny import (
    IMAGES,
    PEOPLE,
    TinyRun,
    tiny_banks,
    tiny_data,
    tiny_model,
    tiny_prompt_settings,
    tiny_settings,
    tiny_tester,
)
from utils.checkpoint import on_host
from utils.modality import Modality

DEVICE = "cuda"


def real_banks(device):
    return {m: ImageBank(bank.images, device) for m, bank in tiny_banks().items()}


def close(found, expected, **tolerance):
    for a, b in zip(tree_leaves(on_host(found)), tree_leaves(on_host(expected)), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def training_steps(clip_file, device, name, replayed=False):
    """Two steps of a fine-tune in which the modalities meet: the numbers of each, the method, the model."""
    torch.manual_seed(0)
    settings = tiny_settings(METHOD__NAME=name, METHOD__CROSS_EPOCH=1, PRECISION="fp32", **AUGMENTATION)
    state = TrainState(tiny_model(clip_file).to(device), settings)
    rows = {m: F.normalize(torch.randn(IMAGES, state.model.feature_dim), dim=1).to(device) for m in Modality}
    method = settings.method(**settings.of_method)
    labels = method.start(EpochStart({"feature": rows}, LABELS, CAMERAS), 1)
    guidance = TextGuidance({m: torch.randn(PEOPLE, 32).to(device) for m in Modality}, LABELS, 0.1)
    batches = Batches(real_banks(device), labels, settings, 1, method.views)
    network = ReplayedNetwork(state.model, BOTH) if replayed else state.model
    network.train()
    found = [train_step(network, state.optimizer, method, batches[step], guidance, "fp32") for step in range(2)]
    return found, method, state.model


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cclnet", "pgm", "rpnr"])
def test_training_steps_on_a_gpu(either_clip_file, name):
    """As on the host, and the same again by CUDA graphs: two replays, with the weights' change between them."""
    found, method, model = training_steps(either_clip_file, DEVICE, name)
    expected, same, _ = training_steps(either_clip_file, "cpu", name)
    assert method.prototypes()["rgb"].device.type == DEVICE == next(model.parameters()).device.type
    close(found[0], expected[0], rtol=1e-3, atol=1e-3)
    close(found[1], expected[1], rtol=5e-2, atol=5e-2)      # Adam's first step enlarges small differences
    close(method.prototypes(), same.prototypes(), rtol=0, atol=2e-2)
    assert (method.links().rgb_to_ir >= 0).any()
    for partner, expected in zip(method.links(), same.links()):
        np.testing.assert_array_equal(partner, expected)
    again, same, other = training_steps(either_clip_file, DEVICE, name, replayed=True)
    close(again, found, rtol=1e-2, atol=1e-2)
    close(same.prototypes(), method.prototypes(), rtol=0, atol=1e-2)
    close(dict(other.named_buffers()), dict(model.named_buffers()), rtol=1e-3, atol=1e-3)


def first_prompt_step(clip, device):
    text, settings = TextTower(clip).to(device), tiny_prompt_settings()
    state = PromptState(text, LABELS, settings)
    generator = torch.Generator().manual_seed(0)
    batch = PromptBatches(real_banks(device), LABELS, settings, 1)[0]
    loss = prompt_step(text, state.prompts, state.optimizer,
                       {m: torch.randn(len(batch[m]), 32, generator=generator).to(device) for m in Modality},
                       {m: LABELS[m][batch[m]] for m in Modality})
    return loss, [prompts.context.grad for prompts in state.prompts.values()]


@pytest.mark.gpu
def test_prompt_step_on_a_gpu(either_clip):
    loss, gradients = first_prompt_step(either_clip, DEVICE)
    assert loss.device.type == gradients[0].device.type == DEVICE
    close([loss, gradients], list(first_prompt_step(either_clip, "cpu")), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_retrieval_on_a_gpu(either_clip_file):
    """Embedding, prototypes and ranking, in every place where the images may be held."""
    data, found = tiny_data(), {}
    for name, cache in (("cpu", "mmap"), (DEVICE, "mmap"), (DEVICE, "device")):
        banks = {m: ImageBank(bank.images, name, cache=cache) for m, bank in tiny_banks().items()}
        model = tiny_model(either_clip_file).to(name)
        features = embed(model, banks[Modality.IR], Modality.IR, BOTH, batch_size=7, precision="fp32")
        start = cluster_means(features["feature"], LABELS[Modality.IR])
        assert features["feature"].device.type == start.device.type == name
        result = evaluate(model, data, banks, [data.retrieval()], 7, "fp32")[0].mean()
        found[name, cache] = features, start, torch.tensor([result["rank1"], result["mAP"]])
    for values in found.values():
        close(list(values), list(found["cpu", "mmap"]), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_training_on_a_gpu(either_clip_file, tmp_path):
    """Three epochs with linked clusters in the last, the last two resumed from the state file."""
    banks, content = real_banks(DEVICE), None
    for epochs in (1, 3):
        settings = tiny_settings(epochs, PRECISION="fp32", **AUGMENTATION)
        model, run = tiny_model(either_clip_file).to(DEVICE), TinyRun(tmp_path / "run", content)
        train("prepare", model, banks, settings, run, tiny_tester(banks))
        content = run.saved()
    assert [row["epoch"] for row in run.history] == [1, 2, 3] and run.history[-1]["links"] > 0
    assert all(np.isfinite(row[name]) for row in run.history for name in ("loss_rgb", "loss_ir"))
    content = torch.load(run.model_file("prepare", "last"), weights_only=True)
    assert {tensor.device.type for tensor in content["state_dict"].values()} == {"cpu"}
    close(content["state_dict"], model.state_dict(), rtol=0, atol=0)
