"""COMPILE: a compiled tower gives the same numbers; state dicts and copies do not notice."""
import copy
import dataclasses
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


def test_every_pass_of_an_epoch_is_compiled(monkeypatch, tmp_path):
    """Embedding comes first and differs from a step; past eight variants PyTorch would compile no more.

    Its batches have one size, but for the last; the state dict, copies and features are those of a plain model.
    """
    parts, sizes, graphs, banks = [], [], [], tiny_banks()
    for name, called in (("encode", 2), ("forward", 3)):        # a stem and the layers; both stems and the layers
        real = getattr(CCLNet, name)
        monkeypatch.setattr(CCLNet, name, lambda model, images, *rest, real=real, called=called: (
            parts.append(called), sizes.append(len(images)), real(model, images, *rest))[2])
    visual = ModifiedResNet([2, 1, 1, 2], output_dim=32, heads=8, image_size=64, width=8)
    model = CCLNet(ClipResNet(visual, HEIGHT, WIDTH))
    names = list(model.state_dict())
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(        # needs no compiler: runs what was captured
        torch.compile, backend=lambda graph, _: lambda *inputs: (graphs.append(1), graph(*inputs))[1]))
    compile_parts(model.tower, CPU)
    plain = copy.deepcopy(model)
    assert is_compiled(model) and not is_compiled(plain)
    graphs.clear()
    settings = tiny_settings(epochs=1, METHOD__NAME="rpnr", METHOD__CROSS_EPOCH=1, SAMPLER__ITERATIONS=1,
                             TEST__BATCH_SIZE=8)
    tester = dataclasses.replace(tiny_tester(banks), batch_size=8)
    train("prepare", model, banks, settings, TinyRun(tmp_path), tester)
    assert len(graphs) == sum(parts) and {2, 3} == set(parts)
    assert list(model.state_dict()) == names
    plain.load_state_dict(model.state_dict())
    sizes.clear()
    found, expected = (embed(each, banks[Modality.IR], Modality.IR, batch_size=8, precision="fp32")["feature"]
                       for each in (model, plain))
    assert sizes == [8, 8, 8, 8, 8, 8, 8, 6] and found.shape == (IMAGES, model.feature_dim)
    torch.testing.assert_close(found, expected)


def test_no_compiler_is_a_sentence(model, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"COMPILE is True.*Failed to find C compiler.*g\+\+.*COMPILE False"):
        compile_parts(model.tower, CPU)
    assert not is_compiled(model)
