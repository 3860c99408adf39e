"""Learning rates of whole training runs, read from the optimiser as the loop steps it: equal to the released code's."""
import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from processor.train import train
from tests.tiny import IMAGES, TinyRun, tiny_banks, tiny_model, tiny_settings, tiny_tester


class ToyNeck(torch.nn.Module):
    """A neck with a weight and a bias more, which see the gradients of a golden file instead of their own."""

    def __init__(self, neck, weight, bias):
        super().__init__()
        self.neck, self.toy_weight, self.toy_bias = neck, torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, pooled):
        return self.neck(pooled) + 0 * (self.toy_weight.sum() + self.toy_bias.sum())


@pytest.mark.parametrize("run", ["finetune", "prepare"])
def test_regdb_schedule(golden_methods, tiny_clip_file, tmp_path, run):
    """RegDB's fine-tune restarts Adam and its schedule at the swap epoch; train_prepare.py does not."""
    g = golden_methods.load("regdb_schedule")
    epochs, gradients = int(g["epochs"]), {k: torch.from_numpy(g[f"toy_gradient_{k}"]) for k in ("weight", "bias")}
    released = {"METHOD__CROSS_EPOCH": "base_epoch", "OPTIM__LR": "base_lr", "OPTIM__BIAS_LR_FACTOR": "bias_lr_factor",
                "OPTIM__WEIGHT_DECAY": "weight_decay", "OPTIM__WARMUP_EPOCHS": "warmup_iters",
                "OPTIM__WARMUP_FACTOR": "warmup_factor", "OPTIM__STEPS": "milestones", "OPTIM__GAMMA": "gamma"}
    settings = tiny_settings(epochs, restart=run == "finetune", SAMPLER__CLUSTERS=4, SAMPLER__INSTANCES=IMAGES // 4 + 1,
                             **{key: g[name].tolist() for key, name in released.items()})
    model = tiny_model(tiny_clip_file)
    model.neck = ToyNeck(model.neck, *(torch.from_numpy(g[f"toy_start_{k}"].copy()) for k in ("weight", "bias")))
    toy = {"weight": model.neck.toy_weight, "bias": model.neck.toy_bias}
    seen = []

    def before_step(optimizer, *_):
        groups = {name: next(g for g in optimizer.param_groups if any(p is q for q in g["params"]))
                  for name, p in toy.items()}
        seen.append({**{f"{name}_lr": group["lr"] for name, group in groups.items()},
                     "steps": int(optimizer.state.get(toy["weight"], {"step": 0})["step"])})

    for name, parameter in toy.items():
        parameter.register_hook(lambda _, name=name: gradients[name][len(seen)])
    def after_step(*_):
        after.append({name: p.detach().clone().numpy() for name, p in toy.items()})

    after, banks = [], tiny_banks()
    hooks = register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)
    try:
        train("finetune", model, banks, settings, TinyRun(tmp_path), tiny_tester(banks, every=epochs))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == len(after) == epochs        # one step an epoch
    for name in ("weight", "bias"):
        np.testing.assert_allclose([row[f"{name}_lr"] for row in seen], g[f"{run}_{name}_lr"], rtol=1e-9)
        np.testing.assert_allclose([row[name] for row in after], g[f"{run}_toy_{name}"], atol=2e-6)
    np.testing.assert_array_equal([row["steps"] for row in seen], g[f"{run}_adam_steps_before"])


@pytest.mark.parametrize("stop_after", [14, 17])
def test_resume_across_the_restart(tiny_clip_file, tmp_path, stop_after):
    """Stopped in the epoch before the restart, or in the restarted one: the same weights at the end."""
    banks = tiny_banks()
    tester = tiny_tester(banks)

    def final(run, restart=True):
        model = tiny_model(tiny_clip_file)
        train("finetune", model, banks, tiny_settings(4, restart, OPTIM__WARMUP_EPOCHS=3), run, tester)
        return model.state_dict()

    whole, without = final(TinyRun(tmp_path / "whole")), final(TinyRun(tmp_path / "without"), restart=False)
    assert any(not torch.equal(whole[k], without[k]) for k in whole)
    first = TinyRun(tmp_path / "run", stop_after=stop_after)
    with pytest.raises(KeyError, match="enough"):
        final(first)
    content = first.state_file.load()[0]
    assert content["stages"]["finetune"]["epoch"] == (2 if stop_after == 14 else 3)
    resumed = final(TinyRun(tmp_path / "run", content))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
