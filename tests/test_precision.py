"""PRECISION: what a GPU rounds; with bf16 weights, memories, losses and distances stay fp32."""
import dataclasses
from types import SimpleNamespace

import pytest
import torch

import loss.cluster_memory
import processor.guidance
import processor.metrics
from model.cclnet import CCLNet
from processor.guidance import TextGuidance
from processor.train import train
from tests.tiny import LABELS, PEOPLE, TinyRun, tiny_settings, tiny_tester
from utils.modality import Modality
from utils.runtime import autocast, gpu_rounding


def test_bf16_is_of_the_network_alone(model, banks, tmp_path, monkeypatch):
    """Weights, losses and distances stay fp32: eight bits would make ties of most distances."""
    in_bf16 = {}

    def note(owner, name):
        real = getattr(owner, name)

        def noted(*arguments, **named):
            in_bf16.setdefault(name, set()).add(torch.is_autocast_enabled("cpu"))
            return real(*arguments, **named)
        monkeypatch.setattr(owner, name, noted)

    for owner, name in ((loss.cluster_memory, "cross_entropy"), (processor.guidance, "image_to_text"),
                        (CCLNet, "forward"), (CCLNet, "encode")):
        note(owner, name)
    seen, real = [], processor.metrics.rank_metrics
    monkeypatch.setattr("processor.evaluate.rank_metrics", lambda distance, *rest: (
        seen.append(torch.from_numpy(distance)), real(distance, *rest))[1])
    texts = {m: torch.randn(PEOPLE, 32, generator=torch.Generator().manual_seed(0)) for m in Modality}
    settings = tiny_settings(1, METHOD__CROSS_EPOCH=1, PRECISION="bf16")
    tester = dataclasses.replace(tiny_tester(banks), precision="bf16")
    train("finetune", model, banks, settings, TinyRun(tmp_path), tester, TextGuidance(texts, LABELS, 0.1))
    assert in_bf16 == {"cross_entropy": {False}, "image_to_text": {False}, "forward": {True}, "encode": {True}}
    assert (seen[-1] != seen[-1].bfloat16().float()).any()
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


SWITCHES = {"released": ("ieee", "tf32"), "fp32": ("ieee", "ieee"), "tf32": ("tf32", "tf32"), "bf16": ("ieee", "ieee")}


@pytest.mark.parametrize("name, expected", SWITCHES.items())
def test_switches_of_a_gpus_matrix_products_and_convolutions(name, expected, recwarn, monkeypatch):
    """The released numbers were made with TF32 in convolutions and none in matrix products; PyTorch 2.8 has others."""
    new = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    if hasattr(new[0], "fp32_precision"):
        before = [owner.fp32_precision for owner in new]
        with pytest.raises(KeyError), gpu_rounding(name), autocast(name, torch.device("cpu")):
            assert tuple(owner.fp32_precision for owner in new) == expected
            assert torch.is_autocast_enabled("cpu") == (name == "bf16")
            raise KeyError
        assert [owner.fp32_precision for owner in new] == before and not recwarn.list
    old = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)),
                          cudnn=SimpleNamespace(allow_tf32=False))
    monkeypatch.setattr(torch, "backends", old)
    with gpu_rounding(name):
        assert (old.cuda.matmul.allow_tf32, old.cudnn.allow_tf32) == tuple(value == "tf32" for value in expected)
    assert old.cuda.matmul.allow_tf32 and not old.cudnn.allow_tf32
