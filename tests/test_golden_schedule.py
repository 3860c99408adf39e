"""Learning rates of whole training runs, read from the optimiser as the loop steps it: equal to the released code's."""
import dataclasses

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from data.augment import Augmentation
from model.cclnet import CCLNet
from model.clip import load_clip
from processor.contrast import ContrastSettings, ContrastStage
from processor.pseudo_labels import ClusterSettings
from tests.tiny import HEIGHT, IMAGES, WIDTH, tiny_banks
from utils.modality import Modality


class ToyNeck(torch.nn.Module):
    """A neck with a weight and a bias more, which see the gradients of a golden file instead of their own."""

    def __init__(self, neck, weight, bias):
        super().__init__()
        self.neck, self.toy_weight, self.toy_bias = neck, torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, pooled):
        return self.neck(pooled) + 0 * (self.toy_weight.sum() + self.toy_bias.sum())


@pytest.mark.parametrize("run", ["finetune", "prepare"])
def test_regdb_schedule(golden_methods, tiny_clip_file, run):
    """RegDB's fine-tune restarts Adam and its schedule at the swap epoch; train_prepare.py does not."""
    g = golden_methods.load("regdb_schedule")
    epochs, gradients = int(g["epochs"]), {k: torch.from_numpy(g[f"toy_gradient_{k}"]) for k in ("weight", "bias")}
    settings = ContrastSettings(
        epochs=epochs, cluster=ClusterSettings(k1=5, k2=2), swap_epoch=int(g["base_epoch"]),
        clusters_per_batch=4, instances=IMAGES // 4 + 1, lr=float(g["base_lr"]),
        bias_lr_factor=float(g["bias_lr_factor"]), weight_decay=float(g["weight_decay"]),
        warmup_epochs=int(g["warmup_iters"]), warmup_factor=float(g["warmup_factor"]),
        lr_steps=tuple(g["milestones"].tolist()), lr_gamma=float(g["gamma"]),
        augmentation={m: Augmentation() for m in Modality},
        restart_epoch=int(g["base_epoch"]) if run == "finetune" else None)
    model = CCLNet(load_clip(tiny_clip_file).visual, HEIGHT, WIDTH)
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
    handle, after = register_optimizer_step_pre_hook(before_step), []
    try:
        for _ in ContrastStage(model, tiny_banks(), settings).epochs():
            after.append({name: p.detach().clone().numpy() for name, p in toy.items()})
    finally:
        handle.remove()
    assert len(seen) == len(after) == epochs        # one step an epoch
    for name in ("weight", "bias"):
        np.testing.assert_allclose([row[f"{name}_lr"] for row in seen], g[f"{run}_{name}_lr"], rtol=1e-9)
        np.testing.assert_allclose([row[name] for row in after], g[f"{run}_toy_{name}"], atol=2e-6)
    np.testing.assert_array_equal([row["steps"] for row in seen], g[f"{run}_adam_steps_before"])


@pytest.mark.parametrize("stop_in", [2, 3])
def test_resume_across_the_restart(tiny_clip_file, stop_in):
    """Stopped in the epoch before the restart, or in the restarted one: the same weights at the end."""
    settings = ContrastSettings(epochs=4, cluster=ClusterSettings(k1=5, k2=2), swap_epoch=3, restart_epoch=3,
                                clusters_per_batch=2, instances=2, warmup_epochs=3)
    banks, visual = tiny_banks(), load_clip(tiny_clip_file).visual

    def final(stage):
        list(stage.epochs())
        return stage.model.state_dict()

    whole = final(ContrastStage(CCLNet(visual, HEIGHT, WIDTH), banks, settings))
    never = dataclasses.replace(settings, restart_epoch=None)
    without = final(ContrastStage(CCLNet(visual, HEIGHT, WIDTH), banks, never))
    assert any(not torch.equal(whole[k], without[k]) for k in whole)

    class Enough(Exception):
        pass

    first = ContrastStage(CCLNet(visual, HEIGHT, WIDTH), banks, settings)

    def stop():
        if first.epoch == stop_in and first.iteration == 2:
            raise Enough

    with pytest.raises(Enough):
        list(first.epochs(stop))
    second = ContrastStage(CCLNet(visual, HEIGHT, WIDTH), banks, settings)
    second.load_state_dict(first.state_dict())
    resumed = final(second)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
