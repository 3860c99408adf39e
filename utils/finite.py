"""When numbers stop being finite: which ones, when, and in which images."""
import math

import torch

from utils.errors import UserError

NAMED = 5       # images in the sentence


class NonFinite(UserError):
    """A loss, feature or weight is NaN or Inf.

    Args: term: what is not finite; images: names of the images concerned; when: as in "epoch 3, iteration 17".
    """

    def __init__(self, term, images=(), when=""):
        self.term, self.images = term, list(images)
        names = ", ".join(map(str, self.images[:NAMED]))
        more = f" and {len(self.images) - NAMED} more" if len(self.images) > NAMED else ""
        super().__init__(f"{term} {'are' if ' and ' in term else 'is'} not finite{f' in {when}' if when else ''}"
                         + (f" (images: {names}{more})" if names else "")
                         + "; expected finite numbers. Look at the images, lower OPTIM.LR or PROMPT.LR or "
                         "set PRECISION fp32 with --fresh; what was saved before is sound")


class RunningMeans:
    """Means of an epoch's numbers over its steps; remembers the first step in which a loss was NaN or Inf.

    Numbers are read from their device by `check` and `means` alone, all in one look, so no step waits for a GPU.

    Example:
        >>> means = RunningMeans()
        >>> means.add({"loss": torch.tensor(3.0), "links": 4})
        >>> means.add({"loss": torch.tensor(1.0)})          # no links in this step
        >>> means.means()
        {'loss': 2.0, 'links': 4.0}
    """

    def __init__(self):
        self.steps = 0
        self.unread = []                    # (step, name, number or scalar tensor)
        self.sums, self.counts = {}, {}     # name -> sum of its numbers, how many steps gave it one
        self.broken = {}                    # name of a loss -> first step in which it was not finite

    def add(self, numbers):
        """Add a step. Args: numbers: name -> number or scalar tensor; names of losses begin with "loss"."""
        self.steps += 1
        self.unread += [(self.steps, name, torch.as_tensor(number).detach()) for name, number in numbers.items()]

    def _read(self):
        unread, self.unread = self.unread, []
        for device in {number.device for _, _, number in unread}:
            rows = [row for row in unread if row[2].device == device]
            for (step, name, _), value in zip(rows, torch.stack([number.double() for _, _, number in rows]).tolist()):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
                if name.startswith("loss") and not math.isfinite(value):
                    self.broken.setdefault(name, step)

    def check(self, when, names):
        """Raise `NonFinite` if a loss was NaN or Inf, for the first such step.

        Args: when: "epoch 3"; names: a function from a step, counted from 0, to the names of its images.
        """
        self._read()
        if self.broken:
            first = min(self.broken.values())
            raise NonFinite(" and ".join(name for name, step in self.broken.items() if step == first), names(first - 1),
                            f"{when}, iteration {first}")

    def means(self):
        """Return name -> mean over the steps that gave it."""
        self._read()
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def check_weights(state, when):
    """Raise `NonFinite` unless all tensors of a state dict are finite, so that no broken weights are saved."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFinite(f"weight {name}", when=when)
