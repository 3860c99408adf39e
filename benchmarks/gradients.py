"""How far the gradients of METHOD.GRADIENTS exact and released lie apart, in the steps of a run of train_prepare.py.

    python -m benchmarks.gradients [--config_file configs/demo.yml] [KEY VALUE ...]

The words are those of train_prepare.py, which trains as ever; METHOD.NAME must be pgm or rpnr. Both gradients, by a
batch's features, are taken in each step in which the modalities meet. Printed are means over those steps of the
difference's norm over that of the exact gradient, and of the cosine, for the modality whose memory the other's batch
meets, and for the other.
"""
import dataclasses
from importlib import import_module

import numpy as np
import torch.nn.functional as F

from loss.pgm import PGM
from utils.errors import UserError, exit_on_user_error


def gradients_of(losses, memory, features, labels, kind):
    """Take the gradients of a step: Modality -> (B * D,). Args: losses: of PGM; kind: "exact" or "released"."""
    settings, rows = memory.settings, {m: x.detach().clone().requires_grad_() for m, x in features.items()}
    memory.settings = dataclasses.replace(settings, gradients=kind)
    sum(losses(memory, rows, labels).values()).backward()
    memory.settings = settings
    return {m: x.grad.flatten() for m, x in rows.items()}


def main():
    """Train, compare in every step, and print the means. Raises UserError: no step has a loss across the modalities."""
    found, losses = {"whose memory is crossed": [], "whose batch crosses": []}, PGM.losses

    def compared(memory, features, labels):
        if memory.meets:
            exact, released = (gradients_of(losses, memory, features, labels, kind) for kind in ("exact", "released"))
            crossing, _ = memory.crossing()
            for which, m in zip(found, (crossing.other, crossing)):
                found[which].append((float((released[m] - exact[m]).norm() / exact[m].norm()),
                                     float(F.cosine_similarity(released[m], exact[m], dim=0))))
        return losses(memory, features, labels)

    PGM.losses = compared
    try:
        import_module("train_prepare").main()
    finally:
        PGM.losses = losses
    for which, steps in found.items():
        if not steps:
            raise UserError("no step had a loss across the modalities; set METHOD.NAME pgm or rpnr, and "
                            "METHOD.CROSS_EPOCH to at most PREPARE.EPOCHS")
        difference, cosine = np.mean(steps, axis=0)
        print(f"modality {which}: {len(steps)} steps, difference {100 * difference:.0f} % of the norm, "
              f"cosine {cosine:.2f}")


if __name__ == "__main__":
    exit_on_user_error(main)
