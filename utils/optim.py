"""Optimisers and learning rates of the released recipe."""
from bisect import bisect_right

import torch
from timm.scheduler import CosineLRScheduler


def image_optimizer(named_parameters, lr=3.5e-4, weight_decay=5e-4, bias_lr_factor=2.0):
    """Adam over (name, parameter) pairs; parameters named "bias" learn at lr * bias_lr_factor."""
    groups = {False: [], True: []}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups["bias" in name].append(parameter)
    return torch.optim.Adam([
        {"params": groups[False], "lr": lr, "base_lr": lr},
        {"params": groups[True], "lr": lr * bias_lr_factor, "base_lr": lr * bias_lr_factor},
    ], weight_decay=weight_decay)


def warmup_step_factor(epoch, warmup_epochs=10, warmup_factor=0.01, steps=(30, 50), gamma=0.1):
    """The factor on the learning rate in an epoch (from 1): linear warm-up, then * gamma from each step on."""
    warmup = 1.0
    if epoch < warmup_epochs:
        progress = epoch / warmup_epochs
        warmup = warmup_factor * (1 - progress) + progress
    return warmup * gamma ** bisect_right(sorted(steps), epoch)


def set_lr(optimizer, factor):
    """Set every group's learning rate to its base_lr * factor; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def prompt_schedule(optimizer, epochs, lr_min=1e-6, warmup_lr=1e-5, warmup_epochs=5):
    """timm's cosine schedule with linear warm-up; call `.step(epoch)` with the epoch's number from 1."""
    return CosineLRScheduler(optimizer, t_initial=epochs, lr_min=lr_min, warmup_lr_init=warmup_lr,
                             warmup_t=warmup_epochs, cycle_limit=1, t_in_epochs=True)
