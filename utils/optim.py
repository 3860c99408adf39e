"""Optimisers and learning rates of the released recipe."""
import math
from bisect import bisect_right

import torch


def image_optimizer(named_parameters, lr, weight_decay, bias_lr_factor):
    """Build Adam over (name, parameter) pairs; parameters named "bias" learn at lr * bias_lr_factor.

    `set_lr` sets the learning rates before the first step.
    """
    groups = {False: [], True: []}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups["bias" in name].append(parameter)
    return torch.optim.Adam([{"params": groups[False], "base_lr": lr},
                             {"params": groups[True], "base_lr": lr * bias_lr_factor}], weight_decay=weight_decay)


def warmup_step_factor(epoch, warmup_epochs, warmup_factor, steps, gamma):
    """Compute the factor on the learning rate in an epoch (from 1): linear warm-up, then * gamma from each step on."""
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


def warmup_cosine_lr(epoch, epochs, lr, lr_min, warmup_lr, warmup_epochs):
    """Compute the learning rate of an epoch (from 1): linear from warmup_lr, then a cosine from lr to lr_min.

    It is that of timm's CosineLRScheduler stepped with the epoch's number: the cosine counts from epoch 0, so it has
    begun to fall when the warm-up ends, and the last epoch runs at lr_min. Args: epoch: at most epochs.
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / warmup_epochs
    return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * epoch / epochs))
