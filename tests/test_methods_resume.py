"""Runs of every method and matching space, stopped and resumed."""
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from processor.guidance import TextGuidance
from processor.train import Batches, train
from tests.tiny import EACH, PEOPLE, TinyRun, tiny_model, tiny_settings, tiny_tester
from utils.modality import Modality

LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}
SPACES = ("prototype", "centroid", "projection", "text")


def guidance():
    generator = torch.Generator().manual_seed(3)
    texts = {m: F.normalize(torch.randn(PEOPLE, 32, generator=generator), dim=1) for m in Modality}
    return TextGuidance(texts, LABELS, 0.1)


def run(clip_file, banks, folder, settings, stop_after=None):
    """Fine-tune with texts; stopped after some steps, then resumed, if that is asked for: weights and rows."""
    content = None
    for stop in ([stop_after] if stop_after else []) + [None]:
        model, run = tiny_model(clip_file), TinyRun(folder, content, stop)
        try:
            train("finetune", model, banks, settings, run, tiny_tester(banks), guidance())
        except KeyError:
            state = folder / "tiny_state.pth"
            content = torch.load(state, weights_only=True)
    clock = ("second", "memory_gb")
    return model.state_dict(), [{k: v for k, v in row.items() if not any(part in k for part in clock)}
                                for row in run.rows("finetune")]


@pytest.mark.parametrize("method, space", [*itertools.product(("cclnet", "pgm", "rpnr"), SPACES), ("none", "")])
def test_every_method_and_space_resumes_to_the_bit(tiny_clip_file, banks, tmp_path, method, space):
    """Stopped in the second of two epochs in which the modalities meet."""
    settings = tiny_settings(epochs=2, MEMORY__METHOD=method, MEMORY__MATCH_BY=space, MEMORY__SWAP_EPOCH=1,
                             INPUT__CHANNEL=1.0, MEMORY__GRADIENTS="released" if space == "projection" else "exact")
    whole, rows = run(tiny_clip_file, banks, tmp_path / "whole", settings)
    steps = len(Batches(banks, LABELS, settings, 1))
    resumed, again = run(tiny_clip_file, banks, tmp_path / "resumed", settings, stop_after=steps + 2)
    assert rows == again and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(rows) == 2 and (rows[-1]["links"] > 0) == (method != "none")
    expected = {"pgm": {"loss_cross"}, "rpnr": {"loss_cross", "loss_hybrid", "loss_relation"}}.get(method, set())
    assert expected <= set(rows[-1]) and (rows[-1]["matched"] > 0) == (method == "cclnet")
