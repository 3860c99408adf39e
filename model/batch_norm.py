"""Batch norm over the batch of all processes, or over parts of it (BATCH_NORM.SPLITS).

With n splits, statistics are those of n equal parts of the batch, in the order in which torch's DataParallel would have
scattered it over n GPUs: part i holds the i-th of n pieces of the visible images and the i-th of the infrared ones.
Process r of N has the r-th piece of each modality. So

    n = N:  each process is a part: torch's own batch norm, also for n = N = 1, where nothing is replaced
    n > N:  each process has n / N parts: `PartBatchNorm`
    n < N:  N / n processes share a part: torch's SyncBatchNorm on GPUs, `SharedBatchNorm` on CPUs

Running statistics are those of the first part, as under DataParallel, whose first replica's are kept. In evaluation
mode nothing differs.
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def spread_batch_norm(model, splits, processes, views=1):
    """Replace the batch norms of a `CCLNet` by ones that fit the processes; parameters and their names stay.

    Args: splits: n, which divides the number of processes or is a multiple of it; processes: of `utils.distributed`;
        views: of each visible image in a batch, beside one of each infrared image.
    Returns: the model.
    """
    if splits > processes.size:
        stems, rest = set(model.tower.stems.modules()), splits // processes.size
        _replace(model, lambda norm: PartBatchNorm(norm, rest, (1,) if norm in stems else (views, 1)))
    elif splits < processes.size:
        group = processes.neighbours(processes.size // splits)
        if next(model.parameters()).is_cuda:
            return nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        _replace(model, lambda norm: SharedBatchNorm(norm, group))
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
        out, mean, var = _Normalise.apply(x.to(self.weight.dtype), self.weight, self.bias, self.eps, self.group)
        count = x.numel() // x.shape[1] * self.group.size()
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return out.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015) whose sums go over all processes of a group."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, group):
        """Normalise x (B, C, ...): the result, mean (C,) and biased variance (C,) of all processes' rows."""
        ctx.group, ctx.dims = group, (0, *range(2, x.ndim))
        var, mean = torch.var_mean(x, ctx.dims, correction=0)
        found = [torch.empty_like(torch.stack([mean, var])) for _ in range(group.size())]
        dist.all_gather(found, torch.stack([mean, var]), group=group)
        means, variances = torch.stack(found, dim=1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        scale = (var + eps).rsqrt()
        normal = (x - _along(mean, x)) * _along(scale, x)
        ctx.save_for_backward(normal, weight, scale)
        ctx.mark_non_differentiable(mean, var)
        return normal * _along(weight, x) + _along(bias, x), mean, var

    @staticmethod
    def backward(ctx, grad, *_):
        """Return the gradients by x, weight and bias; those of the last two are of this process's rows alone."""
        normal, weight, scale = ctx.saved_tensors
        of_bias, of_weight = grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)
        means = torch.stack([of_bias, of_weight])
        dist.all_reduce(means, group=ctx.group)
        means /= grad.numel() // grad.shape[1] * ctx.group.size()
        by_x = (grad - _along(means[0], grad) - normal * _along(means[1], grad)) * _along(weight * scale, grad)
        return by_x, of_weight, of_bias, None, None


def _along(values, x):
    """Shape (C,) values so that they stand along x (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))
