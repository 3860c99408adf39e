"""Passes that are captured once: without a GPU, with a stand-in for capturing; on one, in test_gpu.py."""
import copy
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from model.batch_norm import folded
from model.replay import ReplayedNetwork
from tests.tiny import HEIGHT, WIDTH, outputs, tiny_model
from utils.modality import Modality

HEADS = ("feature", "projection")


def warmed_up(module, samples, **_):
    """Stand in for make_graphed_callables, whose warm-up runs the module and so moves its running statistics."""
    for _ in range(3):
        module(*samples)
    return module


def fails(*_, **__):
    raise RuntimeError("capture is not allowed")


@pytest.mark.parametrize("capture, warned", [(warmed_up, False), (fails, True)])
def test_replayed_passes_are_those_of_the_network(either_clip_file, monkeypatch, capsys, capture, warned):
    """Outputs, gradients and running statistics, of two steps of one shape and one of another."""
    monkeypatch.setattr("torch.cuda.make_graphed_callables", capture)
    model = tiny_model(either_clip_file).train()
    other = copy.deepcopy(model)
    network = ReplayedNetwork(other, HEADS)
    for step, size in enumerate((4, 4, 2)):
        batch = torch.randn(2, size, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(step))
        found, expected = network(*batch, HEADS), model(*batch, HEADS)
        for head in HEADS:
            for m in Modality:
                torch.testing.assert_close(found[head][m], expected[head][m])
        for out in (found, expected):
            sum(rows.square().sum() for head in out.values() for rows in head.values()).backward()
    for a, b in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name)
    assert ("CUDA_GRAPHS True has no effect, capturing failed (capture is not" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("agw", [False, True])
def test_folded_batch_norms_change_the_rounding_alone(agw, tiny_clip_file):
    """Also those of AGW's non-local blocks; all other weights are the model's own, not copies."""
    model = tiny_model(str(Path(__file__).parents[1] / "assets/demo_agw.pth") if agw else tiny_clip_file).train()
    for _ in range(3):
        model(*torch.randn(2, 4, 3, HEIGHT, WIDTH))             # running statistics that are not 0 and 1
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            torch.nn.init.normal_(part.weight, 1, 0.2)
            torch.nn.init.normal_(part.bias, 0, 0.2)
    fast = folded(model)
    assert model.training and [type(part) for part in fast.modules() if isinstance(part, _BatchNorm)] == [
        type(model.neck)]
    assert fast.neck.weight is model.neck.weight
    torch.testing.assert_close(outputs(fast), outputs(model), rtol=1e-4, atol=3e-5)
