"""Batch norm over the batch of all processes, or over parts of it (BATCH_NORM.SPLITS).

With n splits, statistics are those of n equal parts of the batch, as torch's DataParallel would have scattered it over
n GPUs: part i holds the i-th of n pieces of each modality. Process r of N has the r-th piece of each modality. So

    n = N:  each process is a part: torch's own batch norm, also for n = N = 1, where nothing is replaced
    n > N:  each process has n / N parts: `PartBatchNorm`
    n < N:  N / n processes share a part: torch's SyncBatchNorm on GPUs, `SharedBatchNorm` on CPUs

Running statistics are those of the first part, as under DataParallel. In evaluation mode nothing differs.
"""
import copy
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def spread_batch_norm(model, splits, processes, rows=(1, 1)):
    """Replace the batch norms of a `CCLNet` by ones that fit the processes; parameters and their names stay.

    Args: splits: n, which divides the number of processes or is a multiple of it; processes: of `utils.distributed`;
        rows: numbers of visible and infrared images in a batch, views counted.
    Returns: the model.
    """
    if splits > processes.size:
        stems, rest, rows = set(model.tower.stems.modules()), splits // processes.size, tuple(rows)
        shares = tuple(number // math.gcd(*rows) for number in rows)
        _replace(model, lambda norm: PartBatchNorm(norm, rest, (1,) if norm in stems else shares))
    elif splits < processes.size:
        group = processes.neighbours(processes.size // splits)
        if next(model.parameters()).is_cuda:
            return nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        _replace(model, lambda norm: SharedBatchNorm(norm, group))
    return model


def folded(model):
    """Copy a model for evaluation with each batch norm computed by the convolution before it, for speed.

    Outputs differ by rounding. Pairs are found by the names that ResNets have: conv1 and bn1; of a shortcut 0 and 1.
    All other weights are the model's own.
    """
    own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, own).eval()        # which copies no tensor in `own`
    for module in list(model.modules()):
        parts = dict(module.named_children())
        for name, part in parts.items():
            norm = "1" if name == "0" else name.replace("conv", "bn")
            if isinstance(part, nn.Conv2d) and isinstance(parts.get(norm), _BatchNorm):
                setattr(module, name, fuse_conv_bn_eval(part, parts[norm]))
                setattr(module, norm, nn.Identity())
    return model


def _replace(module, make):
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(module, name, make(child))
        else:
            _replace(child, make)


class _LikeBatchNorm(_BatchNorm):
    """A batch norm with the parameters and running statistics of another. Args: norm: the other."""

    def __init__(self, norm):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)

    def forward(self, x):
        """Normalise (B, C, ...): by statistics of the batch in training mode, by running ones in evaluation mode."""
        return self._train(x) if self.training else super().forward(x)

    def _check_input_dim(self, x):
        pass


class PartBatchNorm(_LikeBatchNorm):
    """Torch's batch norm on equal parts of a batch.

    Args: norm: to replace; parts: number; shares: relative numbers of the rows of the modalities that lie one after
        the other in the batch, as in (2, 1); each modality is cut into equal parts.
    """

    def __init__(self, norm, parts, shares):
        super().__init__(norm)
        self.parts, self.shares = parts, shares

    def _train(self, x):
        self.num_batches_tracked.add_(1)
        unit = len(x) // (self.parts * sum(self.shares))
        pieces = list(x.split([unit * share for share in self.shares for _ in range(self.parts)]))
        for number in range(self.parts):
            own = slice(number, None, self.parts)
            running = (None, None) if number else (self.running_mean, self.running_var)
            part = F.batch_norm(torch.cat(pieces[own]), *running, self.weight, self.bias, True, self.momentum, self.eps)
            pieces[own] = part.split([unit * share for share in self.shares])
        return torch.cat(pieces)


class SharedBatchNorm(_LikeBatchNorm):
    """A batch norm whose statistics are those of the batches of several processes, for CPUs.

    Args: norm: to replace; group: process group, whose processes have equally many rows each.
    """

    def __init__(self, norm, group):
        super().__init__(norm)
        self.group = group

    def _train(self, x):
        dims, given = (0, *range(2, x.ndim)), x
        x = x.to(self.weight.dtype)
        mean = _MeanOfAll.apply(x.mean(dims), self.group)
        x = x - _along(mean, x)
        var = _MeanOfAll.apply(x.square().mean(dims), self.group)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * self.group.size()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        x = x * _along((var + self.eps).rsqrt() * self.weight, x) + _along(self.bias, x)
        return x.to(given.dtype)


class _MeanOfAll(torch.autograd.Function):
    """The mean of a tensor over the processes of a group; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx, values, group):
        """Return the mean, the same on all processes."""
        ctx.group, total = group, values.clone()
        dist.all_reduce(total, group=group)
        return total / group.size()

    @staticmethod
    def backward(ctx, grad):
        """Return the gradient by the values."""
        return _MeanOfAll.apply(grad, ctx.group), None


def _along(values, x):
    """Shape (C,) values so that they stand along x (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))
