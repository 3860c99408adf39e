"""Device tests without a GPU: PyTorch's fake tensors have a device and a shape, but no values.

A tensor that was left on the host raises where it meets one on the GPU, as it would there; so does, within `Waits`,
what would let the host wait for a GPU. What depends on values (links, clusters, distinct labels) and backward passes
need a real GPU: test_gpu.py.
"""
import contextlib

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.batches import Batch, Batches
from data.images import ImageBank
from loss.links import Links
from loss.method import EpochStart
from loss.methods import METHODS
from model.clip import TextTower
from model.prompt import PromptLearner
from processor.features import embed
from processor.guidance import TextGuidance
from processor.prompt import PromptState, prompt_step, text_features
from processor.train import TrainState, train_step
from tests.tiny import (
    IMAGES,
    LABELS,
    PEOPLE,
    tiny_banks,
    tiny_model,
    tiny_prompt_settings,
    tiny_settings,
)
from utils.finite import RunningMeans
from utils.modality import Modality

BATCH = {m: np.array([0, 0, 3, 1]) for m in Modality}
POSITIONS = {m: np.array([0, 1, 18, 6]) for m in Modality}
CAMERAS = {m: np.arange(IMAGES) % 2 for m in Modality}
LINKS = Links(np.array([1, -1, 2, 0, 4]), np.array([3, 0, 2, -1, 4]))
BOTH = ("feature", "projection")
AUGMENTATION = {"INPUT__GREY": 0.5, "INPUT__PAD": 3, "INPUT__ERASE": 1.0}
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "masked_select",
         "unique_consecutive")      # operations whose result, or its shape, the host must know


class HostIsReal(TorchFunctionMode):
    """Compute what concerns the host alone with real values; of the GPU answer what depends on values.

    Embedding asks there which features are not finite: none. Pinned memory is memory of the host.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.pin_memory:
            return args[0]
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, FakeTensor) or (isinstance(leaf, (str, torch.device)) and "cuda" in str(leaf))
                   for leaf in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.Tensor.nonzero:
            return args[0].new_empty((0, args[0].ndim), dtype=torch.int64)
        return func(*args, **kwargs)


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


@contextlib.contextmanager
def fake_cuda():
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes), HostIsReal():
        yield


def on_gpu(tree):
    """All tensors of nested dicts are on the GPU, and there are some."""
    found = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return bool(found) and all(tensor.device.type == "cuda" for tensor in found)


def random(*shape):
    return {m: torch.randn(*shape, device="cuda") for m in Modality}


def labelled(images=None):
    """A batch of four images of each modality."""
    return Batch(images, BATCH, POSITIONS, {m: CAMERAS[m][POSITIONS[m]] for m in Modality})


def started(name="cclnet", dim=64, epoch=2, **settings):
    """A method in an epoch in which the modalities meet, with random features on the GPU."""
    method = METHODS[name](cross_epoch=1, **settings)
    method.start(EpochStart({"feature": random(IMAGES, dim)}, LABELS, CAMERAS), epoch)
    return method


@pytest.fixture
def given_links(monkeypatch):
    """Links and calibrated labels: they depend on values, of which there are none here."""
    monkeypatch.setattr("loss.cclnet.CCLNet.rule", staticmethod(lambda _: LINKS))
    monkeypatch.setattr("loss.links.to_host", lambda tensor: lambda: None)
    monkeypatch.setattr("loss.links.link_rows", lambda *_: LINKS)
    monkeypatch.setattr("loss.rpnr.calibrate", lambda features, labels, top: labels)


@pytest.fixture
def text(clip):
    return TextTower(clip)


def fake_banks():
    """Visible images that are held on the host, infrared ones that are held on the GPU."""
    return {m: ImageBank(bank.images, "cuda", cache=cache) for (m, bank), cache in zip(tiny_banks().items(),
                                                                                     ("mmap", "device"))}


def test_embedding(either_clip_file):
    model = tiny_model(either_clip_file)
    with fake_cuda():
        out = embed(model.to("cuda"), fake_banks()[Modality.IR], Modality.IR, BOTH, batch_size=20, precision="released")
        assert on_gpu(out) and {len(rows) for rows in out.values()} == {IMAGES}


@pytest.mark.parametrize("name, settings", [
    ("cclnet", {"swap_order": "simultaneous"}), ("cclnet", {"renewal": "hard"}), ("pgm", {"gradients": "released"}),
    ("rpnr", {})])
def test_a_step_of_each_method(name, settings, given_links):
    with fake_cuda():
        method = started(name, **settings)
        losses = method.losses(random(4, 64), labelled())
        method.update(random(4, 64), labelled())
        assert len(losses) == {"cclnet": 2, "pgm": 3, "rpnr": 5}[name] and on_gpu([losses])
        assert on_gpu(method.prototypes())


def test_a_prompt_step_waits_for_nothing(text, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    with fake_cuda():
        text.to("cuda")
        state, projections = PromptState(text, LABELS, tiny_prompt_settings()), random(4, 32)
        assert on_gpu([state.prompts[m].state_dict() for m in Modality])
        with Waits():
            assert on_gpu(prompt_step(text, state.prompts, state.optimizer, projections, BATCH))


def test_the_loops_own_step_waits_for_nothing(model, text, monkeypatch, given_links):
    """All of it but the backward pass: batch, losses, memories, the swap with links that are given, running means."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    with fake_cuda():
        text.to("cuda")
        state = TrainState(model.to("cuda"), tiny_settings())
        prompts = {m: PromptLearner(PEOPLE, m, text).to("cuda") for m in Modality}
        guidance = TextGuidance(text_features(text, prompts), LABELS, 0.1)
        batches = Batches(fake_banks(), LABELS, tiny_settings(**AUGMENTATION), 1)
        method, means = started(dim=model.feature_dim), RunningMeans()
        model.train()
        with Waits():
            for step in range(2):
                numbers = train_step(model, state.optimizer, method, batches[step], guidance, "released")
                means.add(numbers)
        with pytest.raises(AssertionError, match="waits"), Waits():
            means.check("epoch 1", batches.names)       # every CHECK_EVERY steps
        assert {"loss_rgb", "loss_ir", "loss_i2t_rgb", "loss_i2t_ir"} <= set(numbers)
        assert on_gpu([numbers, method.prototypes(), means.sums, means.broken])
