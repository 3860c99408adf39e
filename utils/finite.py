"""When numbers stop being finite: which ones, when, and in which images."""
import torch

from utils.errors import UserError

NAMED = 5       # images in the sentence


class NonFinite(UserError):
    """A loss, feature or weight is NaN or Inf.

    Args: term: what is not finite; images: names of the images concerned; when: as in "epoch 3, iteration 17".
    """

    def __init__(self, term, images=(), when=""):
        self.term, self.images, self.when = term, list(images), when
        names = ", ".join(map(str, self.images[:NAMED]))
        more = f" and {len(self.images) - NAMED} more" if len(self.images) > NAMED else ""
        super().__init__(f"{term} {'are' if ' and ' in term else 'is'} not finite{f' in {when}' if when else ''}"
                         + (f" (images: {names}{more})" if names else "")
                         + "; expected finite numbers. Look at the images, lower OPTIM.LR or PROMPT.LR or "
                         "set PRECISION fp32 with --fresh; what was saved before is sound")

    def at(self, when):
        """Return the same finding with the time at which it was made."""
        return NonFinite(self.term, self.images, when)


class RunningMeans:
    """Sums of an epoch's losses and other numbers, on their device; remembers the first step with a broken loss.

    Nothing is read to the host before `check`, `means` or `state_dict`, so a GPU is not waited for in every step.
    """

    def __init__(self):
        self.sums = {}          # name -> sum over the steps
        self.broken = {}        # name of a loss -> first step in which it was not finite, 0 for none
        self.last = {}          # numbers of the last step, which `CrossMemory` may still have to fill in

    def add(self, step, losses, numbers):
        """Add a step (from 1).

        Args: losses: name -> scalar tensor; numbers: name -> number or scalar tensor, a dict that is read when the next
            step is added or the sums are asked for.
        """
        self._add_last()
        for name, loss in losses.items():
            loss = loss.detach().double()
            self.sums[name] = self.sums.get(name, 0) + loss
            first = self.broken.get(name, torch.zeros((), dtype=torch.int64, device=loss.device))
            self.broken[name] = first + step * ((first == 0) & ~torch.isfinite(loss))    # torch.where would wait
        self.last = numbers

    def _add_last(self):
        for name, number in self.last.items():
            number = number.double() if isinstance(number, torch.Tensor) else number
            self.sums[name] = self.sums.get(name, 0) + number
        self.last = {}

    def check(self, epoch, names):
        """Raise `NonFinite` if a loss was NaN or Inf, for the first such step.

        Args: epoch: for the message; names: a function from a step, counted from 0, to the names of its images.
        """
        if not self.broken:
            return
        steps = dict(zip(self.broken, torch.stack(list(self.broken.values())).tolist()))     # one look at the GPU
        first = min((step for step in steps.values() if step), default=0)
        if first:
            raise NonFinite(" and ".join(name for name, step in steps.items() if step == first), names(first - 1),
                            f"epoch {epoch}, iteration {first}")

    def means(self, steps):
        """Return name -> mean over the steps."""
        return {name: total / steps for name, total in self.state_dict().items()}

    def state_dict(self):
        """Return the sums as numbers."""
        self._add_last()
        return {name: float(total) for name, total in self.sums.items()}

    def load_state_dict(self, state):
        """Take over the sums."""
        self.sums = dict(state)


def check_weights(state, when):
    """Raise `NonFinite` unless all tensors of a state dict are finite, so that no broken weights are saved."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFinite(f"weight {name}", when=when)
