"""COMPILE: a compiled tower gives the same numbers; state dicts and copies do not notice."""
import copy
import functools

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from model.cclnet import CCLNet
from model.towers.clip_resnet import ClipResNet
from processor.features import embed
from processor.train import train
from tests.tiny import HEIGHT, IMAGES, WIDTH, TinyRun, tiny_banks, tiny_settings, tiny_tester
from utils.errors import UserError
from utils.modality import Modality
from utils.runtime import compile_parts, is_compiled

CPU = torch.device("cpu")


def compile_with(monkeypatch, backend):
    """Let torch.compile use a backend that needs no compiler, such as "eager", which runs what was captured."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


@pytest.fixture
def compiled(model, monkeypatch):
    """The same model with a compiled tower."""
    compile_with(monkeypatch, "eager")
    other = copy.deepcopy(model)
    compile_parts(other.tower, CPU)
    return other


def test_the_state_dict_and_copies_are_those_of_a_plain_model(model, compiled):
    assert is_compiled(compiled) and not is_compiled(model) and not is_compiled(copy.deepcopy(compiled))
    assert list(compiled.state_dict()) == list(model.state_dict())
    parts = {name for name, part in compiled.tower.named_modules() if part._compiled_call_impl is not None}
    assert parts == {"stems.rgb", "stems.ir", "layers", "attnpool"}


def test_a_compiled_model_embeds_in_batches_of_one_size(model, compiled, monkeypatch):
    sizes, real = [], CCLNet.encode
    monkeypatch.setattr(CCLNet, "encode", lambda self, images, *rest: (sizes.append(len(images)),
                                                                       real(self, images, *rest))[1])
    bank = tiny_banks()[Modality.IR]
    found, expected = (embed(m, bank, Modality.IR, batch_size=8, precision="fp32")["feature"]
                       for m in (compiled, model))
    assert sizes == [8, 8, 8, 8, 8, 8, 8, 6] and found.shape == expected.shape == (IMAGES, model.feature_dim)
    torch.testing.assert_close(found, expected)


def test_every_pass_of_an_epoch_is_compiled(monkeypatch, tmp_path):
    """Embedding comes first and differs from a step; past eight variants PyTorch would compile no more."""
    parts, graphs, banks = [], [], tiny_banks()
    for name, called in (("encode", 2), ("forward", 3)):        # a stem and the layers; both stems and the layers
        real = getattr(CCLNet, name)
        monkeypatch.setattr(CCLNet, name, lambda *a, real=real, called=called: (parts.append(called), real(*a))[1])
    visual = ModifiedResNet([2, 1, 1, 2], output_dim=32, heads=8, image_size=64, width=8)
    plain = CCLNet(ClipResNet(visual, HEIGHT, WIDTH))
    model = copy.deepcopy(plain)
    torch.compiler.reset()
    compile_with(monkeypatch, lambda graph, _: lambda *inputs: (graphs.append(1), graph(*inputs))[1])
    compile_parts(model.tower, CPU)
    graphs.clear()
    settings = tiny_settings(epochs=1, METHOD__NAME="rpnr", METHOD__CROSS_EPOCH=1, SAMPLER__ITERATIONS=2)
    train("prepare", model, banks, settings, TinyRun(tmp_path / "run"), tiny_tester(banks))
    assert len(graphs) == sum(parts) and {2, 3} == set(parts)
    train("prepare", plain, banks, settings, TinyRun(tmp_path / "plain"), tiny_tester(banks))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_no_compiler_is_a_sentence(model, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"COMPILE is True.*Failed to find C compiler.*g\+\+.*COMPILE False"):
        compile_parts(model.tower, CPU)
    assert not is_compiled(model)
