"""Optimisers and learning rates of the released recipe."""
import math
from bisect import bisect_right
from functools import partial

import torch

from utils.errors import UserError

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}      # OPTIM.NAME


def image_optimizer(named_parameters, lr, weight_decay, bias_lr_factor, factors=(), kind="adam"):
    """Build Adam or SGD over (name, parameter) pairs; parameters named "bias" learn at lr * bias_lr_factor.

    `set_lr` sets the learning rates before the first step.

    Args: factors: (start of a name, factor on the learning rate) pairs, of which the first that fits a name counts;
        each gives two groups more, of weights and biases; kind: of `OPTIMIZERS`.
    """
    groups = {(factor, bias): [] for factor in (1.0, *(factor for _, factor in factors)) for bias in (False, True)}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[_factor(name, factors), "bias" in name].append(parameter)
    on_gpu = any(parameter.is_cuda for parameters in groups.values() for parameter in parameters)
    return OPTIMIZERS[kind]([{"params": parameters, "base_lr": lr * factor * (bias_lr_factor if bias else 1.0)}
                             for (factor, bias), parameters in groups.items()], weight_decay=weight_decay,
                            fused=on_gpu or None)      # a kernel in place of many; the last bits differ


def freeze(named_parameters, factors):
    """Let the parameters whose factor is 0 have no gradients. Args: factors: as `image_optimizer`.

    Raises: UserError: a pair fits no parameter's name.
    """
    named_parameters = list(named_parameters)
    for start, _ in factors:
        if not any(name.startswith(start) for name, _ in named_parameters):
            known = sorted({".".join(name.split(".")[:2]) for name, _ in named_parameters})
            raise UserError(f"OPTIM.FACTORS names {start}, with which no weight's name begins; expected the start of a "
                            f"name such as {', '.join(known)}")
    for name, parameter in named_parameters:
        if _factor(name, factors) == 0:
            parameter.requires_grad_(False)


def _factor(name, factors):
    """Return the factor on the learning rate of the parameter of a name."""
    return next((float(factor) for start, factor in factors if name.startswith(start)), 1.0)


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
