"""A step waits for nothing on a GPU, but for the links of a swap."""
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import loss.cclnet
from data.batches import Batches
from data.images import ImageBank
from loss.method import EpochStart
from model.clip import TextTower
from model.prompt import PromptLearner
from processor.guidance import TextGuidance
from processor.prompt import prompt_step, text_features
from processor.run.state import PromptState, TrainState
from processor.train import train_step
from tests.test_fake_cuda import (  # noqa: F401 - a fixture
    AUGMENTATION,
    BATCH,
    CAMERAS,
    LABELS,
    fake_banks,
    fake_cuda,
    given_links,
    started,
)
from tests.tiny import IMAGES, PEOPLE, tiny_banks, tiny_prompt_settings, tiny_settings
from utils.finite import RunningMeans
from utils.modality import Modality
from utils.runtime import to_device

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "masked_select",
         "unique_consecutive")      # operations whose result, or its shape, the host must know


class Waits(TorchDispatchMode):
    """Raises where the host would wait for a GPU: values that it reads, copies that are not left to run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        on_gpu = isinstance(args[0], torch.Tensor) and args[0].device.type == "cuda" if args else False
        assert not (on_gpu and name in READS), f"{name} waits for a GPU"
        if name in ("index", "index_put", "index_put_"):        # with a mask, the number of elements must be known
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), f"{name} waits for a GPU"
        if name == "_to_copy" and torch.device(kwargs.get("device") or args[0].device).type != args[0].device.type:
            assert kwargs.get("non_blocking"), "a copy waits for a GPU"
        if name == "copy_" and args[0].device.type != args[1].device.type:
            assert kwargs.get("non_blocking") or args[2:3] == (True,), "a copy waits for a GPU"
        return func(*args, **kwargs)


def test_what_waits_is_seen():
    with fake_cuda():
        x, host = torch.ones(3, device="cuda"), np.arange(3)
        for name, waits in {"item": lambda: x.sum().item(), "cpu": x.cpu, "bool": lambda: bool(x.any()),
                            "to": lambda: torch.from_numpy(host).to("cuda"), "unique": lambda: torch.unique(x),
                            "mask": lambda: x[x > 0]}.items():
            with Waits():
                try:
                    waits()
                except AssertionError as error:
                    assert "waits" in str(error)
                else:
                    pytest.fail(f"{name} is not seen")
        with Waits():
            assert to_device(host, "cuda").device.type == "cuda"


@pytest.mark.parametrize("cache", ["mmap", "device"])
def test_a_step_waits_for_nothing(clip, model, cache, monkeypatch, given_links):  # noqa: F811
    """All of it but the backward pass: batch, losses, memories, the swap with links that are given, running means."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    with fake_cuda():
        text = TextTower(clip).to("cuda")
        state = TrainState(model.to("cuda"), tiny_settings())
        prompts = {m: PromptLearner(PEOPLE, m, text).to("cuda") for m in Modality}
        guidance = TextGuidance(text_features(text, prompts), LABELS, 0.1)
        batches = Batches(fake_banks(cache), LABELS, tiny_settings(**AUGMENTATION), 1)
        method, means = started(dim=model.feature_dim), RunningMeans()
        model.train()
        with Waits():
            for step in range(2):
                means.add(train_step(model, state.optimizer, method, batches[step], guidance, "released"))
        with pytest.raises(AssertionError, match="waits"), Waits():
            means.check("epoch 1", batches.names)       # every CHECK_EVERY steps


def test_a_prompt_step_waits_for_nothing(clip, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    with fake_cuda():
        text = TextTower(clip).to("cuda")
        state = PromptState(text, LABELS, tiny_prompt_settings())
        projections = {m: torch.randn(4, 32, device="cuda") for m in Modality}
        with Waits():
            assert prompt_step(text, state.prompts, state.optimizer, projections, BATCH).device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["mmap", "device"])
def test_steps_wait_for_nothing_on_a_gpu(model, cache, monkeypatch):
    """PyTorch itself raises where it would wait; the links of a swap are exempt."""
    settings = tiny_settings(METHOD__CROSS_EPOCH=1, **AUGMENTATION)
    banks = {m: ImageBank(bank.images, "cuda", cache=cache) for m, bank in tiny_banks().items()}
    state = TrainState(model.to("cuda"), settings)
    guidance = TextGuidance({m: torch.randn(PEOPLE, 32, device="cuda") for m in Modality}, LABELS, 0.1)
    method = settings.method(**settings.of_method)
    method.start(EpochStart({"feature": {m: torch.randn(IMAGES, model.feature_dim, device="cuda") for m in Modality}},
                            LABELS, CAMERAS), 1)
    batches, means, to_host = Batches(banks, LABELS, settings, 1), RunningMeans(), loss.cclnet.to_host

    def exempt(tensor):
        copy = to_host(tensor)

        def wait():
            torch.cuda.set_sync_debug_mode("default")
            found = copy()
            torch.cuda.set_sync_debug_mode("error")
            return found
        return wait

    model.train()
    train_step(model, state.optimizer, method, batches[0], guidance, "fp32")        # sets things up
    torch.cuda.synchronize()
    monkeypatch.setattr(loss.cclnet, "to_host", exempt)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2):
            means.add(train_step(model, state.optimizer, method, batches[step], guidance, "fp32"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.undo()
    means.check("epoch 1", batches.names)
    assert len(method.links().rgb) > 0
