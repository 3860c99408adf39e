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
    """Means of an epoch's losses and other numbers; remembers the first step with a broken loss.

    Sums stay on the device of their numbers: nothing is read to the host before `check` or `means`, so a GPU is not
    waited for in every step.
    """

    def __init__(self):
        self.steps = 0
        self.sums = {}          # name -> sum over the steps
        self.broken = {}        # name of a loss -> first step in which it was not finite, 0 for none

    def add(self, numbers):
        """Add a step's numbers: name -> number or scalar tensor; those whose name begins with "loss" must be finite."""
        self.steps += 1
        for name, number in numbers.items():
            number = torch.as_tensor(number, dtype=torch.float64)
            self.sums[name] = self.sums.get(name, 0) + number
            if name.startswith("loss"):
                first = self.broken.get(name, torch.zeros((), dtype=torch.int64, device=number.device))
                self.broken[name] = first + self.steps * ((first == 0) & ~torch.isfinite(number))

    def check(self, when, names):
        """Raise `NonFinite` if a loss was NaN or Inf, for the first such step.

        Args: when: as in "epoch 3"; names: a function from a step, counted from 0, to the names of its images.
        """
        steps = dict(zip(self.broken, torch.stack(list(self.broken.values())).tolist()))     # one look at the GPU
        first = min((step for step in steps.values() if step), default=0)
        if first:
            raise NonFinite(" and ".join(name for name, step in steps.items() if step == first), names(first - 1),
                            f"{when}, iteration {first}")

    def means(self):
        """Return name -> mean over all steps."""
        return {name: float(total) / self.steps for name, total in self.sums.items()}


def check_weights(state, when):
    """Raise `NonFinite` unless all tensors of a state dict are finite, so that no broken weights are saved."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFinite(f"weight {name}", when=when)
