"""Passes that are captured once: without a GPU, with a stand-in for capturing; on one, in test_gpu.py."""
import copy

import pytest
import torch

from model.replay import ReplayedNetwork
from tests.tiny import HEIGHT, WIDTH, tiny_model
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
