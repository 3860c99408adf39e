"""When numbers stop being finite: which ones, when, and in which images."""
from contextlib import contextmanager
from pathlib import Path

import torch

from utils.checkpoint import save_json
from utils.errors import UserError
from utils.modality import Modality

FILE_NAME = "non_finite.json"
LISTED = 200        # images of each modality in the file


class NonFinite(FloatingPointError):
    """A loss, feature or weight is NaN or Inf.

    Args:
        term: what is not finite; images: Modality -> (`ImageBank`, positions) of the images concerned;
        facts: when it was found (epoch, iteration), numbers.
    """

    def __init__(self, term, images, **facts):
        self.term, self.images, self.facts = term, images, facts
        super().__init__()

    def __str__(self):
        when = ", ".join(f"{name} {self.facts[name]}" for name in ("epoch", "iteration") if name in self.facts)
        return f"{self.term} is not finite{' in ' if when else ''}{when}"

    def record(self):
        """What goes into the file: the facts, and for each modality the number, positions and paths of images."""
        record = {"term": self.term, **self.facts}
        for modality, (bank, positions) in self.images.items():
            positions = sorted({int(p) for p in positions})
            record[modality.value] = {"images": len(positions), "positions": positions[:LISTED],
                                      "paths": [bank.paths[p] for p in positions[:LISTED]] if bank.paths else []}
        return record


@contextmanager
def non_finite_report(output_dir):
    """Turn a `NonFinite` inside this context into OUTPUT_DIR/non_finite.json and a sentence.

    Raises: UserError: says the term, the epoch, the iteration and where the images are listed.
    """
    try:
        yield
    except NonFinite as error:
        path = Path(output_dir) / FILE_NAME
        save_json(path, error.record())
        raise UserError(f"{error}; the images concerned are listed in {path}. Look at them, lower OPTIM.LR or "
                        "PROMPT.LR, or set PRECISION fp32; what was saved before is sound")


def check_losses(losses, features, banks, positions, **when):
    """Raise `NonFinite` unless all losses (name -> scalar) are finite.

    Args: features: Modality -> (B, D) that the losses came from; positions: Modality -> (B,) of the images in banks;
        when: epoch and iteration.
    """
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    if torch.isfinite(values).all():
        return
    numbers = {name: repr(float(value)) for name, value in zip(losses, values)}     # JSON has no NaN
    broken = {m: positions[m][~torch.isfinite(features[m]).all(dim=1).cpu().numpy()] for m in features}
    found = broken if any(len(p) for p in broken.values()) else positions
    terms = [name for name, value in zip(losses, values) if not torch.isfinite(value)]
    raise NonFinite(" and ".join(terms), {m: (banks[m], p) for m, p in found.items()}, **when, losses=numbers)


def check_weights(state, banks, positions, **when):
    """Raise `NonFinite` unless all tensors of a state dict are finite, so that no broken weights are saved.

    Args: positions: Modality -> (B,) of the images of the last step; when: epoch and iteration.
    """
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFinite(f"weight {name}", {m: (banks[m], positions[m]) for m in Modality if m in positions}, **when)
