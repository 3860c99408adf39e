"""Optimisers and learning rates of the released recipe."""
import math
from bisect import bisect_right
from functools import partial

import torch

from utils.errors import UserError

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}      # OPTIM.NAME


def image_optimizer(named_parameters, optim):
    """Build Adam or SGD over (name, parameter) pairs; parameters named "bias" learn at lr * bias_lr_factor.

    `set_lr` sets the learning rates before the first step. Each of the factors gives two groups more, of weights and
    biases.

    Args: optim: the section OPTIM, its keys in lower case; of its (start of a name, factor on the learning rate) pairs
        the first that fits a name counts.
    """
    groups = {(factor, bias): [] for factor in (1.0, *(factor for _, factor in optim.factors))
              for bias in (False, True)}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[_factor(name, optim.factors), "bias" in name].append(parameter)
    on_gpu = any(parameter.is_cuda for parameters in groups.values() for parameter in parameters)
    return OPTIMIZERS[optim.name](
        [{"params": parameters, "base_lr": optim.lr * factor * (optim.bias_lr_factor if bias else 1.0)}
         for (factor, bias), parameters in groups.items()], weight_decay=optim.weight_decay,
        fused=on_gpu or None)      # a kernel in place of many; the last bits differ


def freeze(named_parameters, factors):
    """Let the parameters whose factor is 0 have no gradients. Args: factors: as those of `image_optimizer`.

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
    return next((float(factor) for start, factor in factors if name.startswith(start)), 1.0)


def lr_factor(settings, epoch):
    """Compute what the learning rates are multiplied with in an epoch (from 1), which may count from a restart.

    It rises linearly in the warm-up, and is multiplied by GAMMA from each of STEPS on.

    Args: settings: of `processor.setup.train_settings`.
    """
    o, warmup = settings.optim, 1.0
    if settings.restart_epoch is not None and epoch >= settings.restart_epoch:
        epoch -= settings.restart_epoch - 1
    if epoch < o.warmup_epochs:
        progress = epoch / o.warmup_epochs
        warmup = o.warmup_factor * (1 - progress) + progress
    return warmup * o.gamma ** bisect_right(sorted(o.steps), epoch)


def set_lr(optimizer, factor):
    """Set every group's learning rate to its base_lr * factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def warmup_cosine_lr(epoch, epochs, lr, lr_min, warmup_lr, warmup_epochs):
    """Compute the learning rate of an epoch (from 1): linear from warmup_lr, then a cosine from lr to lr_min.

    It is that of timm's CosineLRScheduler stepped with the epoch's number: the cosine counts from epoch 0, so it has
    begun to fall when the warm-up ends, and the last epoch runs at lr_min. Args: epoch: at most epochs.
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / warmup_epochs
    return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * epoch / epochs))
