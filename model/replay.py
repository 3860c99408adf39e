"""Passes of a network as CUDA graphs: the host starts a whole forward or backward pass at once, not kernel by kernel.

Only for one process and without torch.compile.
"""
import torch
from torch import nn

from utils.modality import Modality
from utils.runtime import print_line


class Replayed(nn.Module):
    """A module whose passes are captured at the first call and replayed for inputs of that shape.

    Other shapes, and all where capturing fails, go through the module itself. The outputs of a call are overwritten by
    the next one, so a backward pass comes before that. Weights and buffers are the module's.

    Args: module: on a GPU; call: what to do with it, (tensor, ...) -> (tensor, ...); None: call it.
    """

    def __init__(self, module, call=None):
        super().__init__()
        self.module, self.call, self.replay, self.shapes = module, call or module, None, None

    def forward(self, *tensors):
        """Return what the module returns."""
        shapes = [tensor.shape for tensor in tensors]
        if self.shapes is None:
            self.shapes = shapes
            self._capture(tensors)
        return (self.replay if self.replay and self.shapes == shapes else self.call)(*tensors)

    def _capture(self, tensors):
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        device = tensors[0].device.type
        try:        # the weights' bfloat16 copies of autocast's cache would not follow the optimiser
            with torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False):
                passes = _Passes(self.module, self.call).train(self.module.training)
                self.replay = torch.cuda.make_graphed_callables(passes, samples, allow_unused_input=True)
        except RuntimeError as error:
            print_line(f"warning: CUDA_GRAPHS True has no effect, capturing failed ({str(error).splitlines()[0]})")
        for name, buffer in self.module.named_buffers():    # capturing has changed the running statistics
            buffer.data.copy_(before[name])


class _Passes(nn.Module):
    """What is captured in place of a module, whose own `forward` is to stay."""

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
