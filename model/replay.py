"""Passes of a network as CUDA graphs: a forward and a backward are one launch each, which the host of a GPU needs.

Only for one process and without torch.compile. Everything around the passes stays as it is.
"""
import torch
from torch import nn

from utils.modality import Modality
from utils.runtime import print_line


class Replayed(nn.Module):
    """Called like a module of tensors, captures its passes at the first call and replays them for inputs of that shape.

    Other shapes, and all where capturing fails, go through the module itself. The outputs of a call are overwritten by
    the next one, so a backward pass comes before that. Weights and buffers are the module's.

    Args: module: on a GPU; call: of it, (tensor, ...) -> (tensor, ...); None: the module's own.
    """

    def __init__(self, module, call=None):
        super().__init__()
        self.module, self.call, self.replay, self.shapes = module, call or module, None, None

    def forward(self, *tensors):
        """Return what the module returns."""
        if self.shapes is None:
            self.shapes = [tensor.shape for tensor in tensors]
            self._capture(tensors)
        same = self.replay is not None and self.shapes == [tensor.shape for tensor in tensors]
        return (self.replay if same else self.call)(*tensors)

    def _capture(self, tensors):
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        on = torch.is_autocast_enabled(tensors[0].device.type)
        kind = torch.get_autocast_dtype(tensors[0].device.type)
        try:        # the weights' bfloat16 copies of autocast's cache would not follow the optimiser
            with torch.autocast(tensors[0].device.type, kind, enabled=on, cache_enabled=False):
                passes = _Passes(self.module, self.call).train(self.module.training)
                self.replay = torch.cuda.make_graphed_callables(passes, samples, allow_unused_input=True)
        except RuntimeError as error:
            print_line(f"warning: CUDA_GRAPHS True has no effect, capturing failed ({str(error).splitlines()[0]})")
        for name, buffer in self.module.named_buffers():    # capturing moved the running statistics
            buffer.data.copy_(before[name])


class _Passes(nn.Module):
    """A module of its own, so that capturing leaves the given one's `forward` as it is."""

    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *tensors):
        return self.call(*tensors)


class ReplayedNetwork(nn.Module):
    """A `CCLNet` whose passes are replayed. Args: model; heads: the only ones that it is called with."""

    def __init__(self, model, heads):
        super().__init__()

        def rows(rgb, ir):
            out = model(rgb, ir, heads)
            return tuple(out[head][m] for head in heads for m in Modality)

        self.passes = Replayed(model, rows)

    def forward(self, rgb, ir, heads):
        """Call it as `CCLNet.forward`."""
        rows = iter(self.passes(rgb, ir))
        return {head: {m: next(rows) for m in Modality} for head in heads}
