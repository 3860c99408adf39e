"""Learning rates of whole training runs, read from the optimiser as the loop steps it: equal to the released code's."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from processor.train import train
from tests.tiny import IMAGES, Silent, TinyRun, tiny_banks, tiny_settings
from utils.modality import Modality


class Toy(torch.nn.Module):
    """A weight, and a bias, which see the gradients of a golden file instead of their own."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), None if bias is None else torch.nn.Parameter(bias)
        self.tower = SimpleNamespace(draw=lambda *_: None)

    def describe(self):
        return {}


@pytest.mark.parametrize("stage", ["finetune", "prepare"])
def test_regdb_schedule(golden_methods, tmp_path, stubs, stage):
    """RegDB's fine-tune restarts Adam and its rates at METHOD.CROSS_EPOCH; train_prepare.py does not."""
    g = golden_methods.load("regdb_schedule")
    epochs, seen = int(g["epochs"]), []
    released = {"METHOD__CROSS_EPOCH": "base_epoch", "OPTIM__LR": "base_lr", "OPTIM__BIAS_LR_FACTOR": "bias_lr_factor",
                "OPTIM__WEIGHT_DECAY": "weight_decay", "OPTIM__WARMUP_EPOCHS": "warmup_iters",
                "OPTIM__WARMUP_FACTOR": "warmup_factor", "OPTIM__STEPS": "milestones", "OPTIM__GAMMA": "gamma"}
    settings = tiny_settings(epochs, restart=stage == "finetune", SAMPLER__CLUSTERS=4, METHOD__NAME="none",
                             SAMPLER__INSTANCES=IMAGES // 4 + 1,        # one step an epoch
                             **{key: g[name].tolist() for key, name in released.items()})
    toy = Toy(*(torch.from_numpy(g[f"toy_start_{name}"].copy()) for name in ("weight", "bias")))

    def step(model, optimizer, *_):
        rates = {name: next(group["lr"] for group in optimizer.param_groups if any(p is q for q in group["params"]))
                 for name, p in toy.named_parameters()}
        done = int(optimizer.state.get(toy.weight, {"step": 0})["step"])
        for name, p in toy.named_parameters():
            p.grad = torch.from_numpy(g[f"toy_gradient_{name}"][len(seen)])
        optimizer.step()
        seen.append((rates, done, {name: p.detach().clone().numpy() for name, p in toy.named_parameters()}))
        return {"loss_rgb": torch.zeros(())}

    stubs.step = step
    nobody = {m: SimpleNamespace(persons=np.zeros(IMAGES)) for m in Modality}       # with whom to compare clusters
    tester = SimpleNamespace(data=SimpleNamespace(train=nobody), device=torch.device("cpu"), is_due=lambda *_: False)
    run = TinyRun(tmp_path, processes=Silent())
    run.save_state = lambda *_: None
    train("finetune", toy, tiny_banks(), settings, run, tester)
    rates, steps_before, after = zip(*seen)
    assert len(seen) == epochs
    for name in ("weight", "bias"):
        np.testing.assert_allclose([rate[name] for rate in rates], g[f"{stage}_{name}_lr"], rtol=1e-9)
        np.testing.assert_allclose([weights[name] for weights in after], g[f"{stage}_toy_{name}"], atol=2e-6)
    np.testing.assert_array_equal(steps_before, g[f"{stage}_adam_steps_before"])
    assert [row["lr"] for row in run.history] == [rate["weight"] for rate in rates]
