"""What checkpoints and state files hold: compared before anything of them is used."""
import itertools

import torch

from data.manifest import MANIFEST
from model.released import STATE_DICT, released_state
from processor.optim import image_optimizer
from utils.checkpoint import load_checkpoint
from utils.errors import quoted
from utils.modality import Modality
from utils.structure import (
    FLOATS,
    Misfit,
    anything,
    listing,
    maybe,
    must_fit,
    one_of,
    real,
    record,
    sequence,
    table,
    tensor,
    text,
    whole,
)

METRICS = ROW = table(anything)
FACTS = {"config": anything, "dataset": text, "trial": whole(), "manifest": MANIFEST, "clip_weights": text,
         "pseudo_labels": text}        # `load_config` checks the configuration
SIZE = {"height": whole(1, 10_000), "width": whole(1, 10_000)}
PROMPTS = record({m.value: table(tensor(dtype=FLOATS, finite=True)) for m in Modality})
CHECKPOINT = record({}, {**FACTS, "format": text, "stage": text, "epoch": whole(), "state_dict": STATE_DICT,
                         "model": record({}, SIZE, anything), "prompts": PROMPTS, "metrics": METRICS, "selected": text},
                    anything)
RELEASED = record({"state_dict": STATE_DICT}, {}, anything)
STATE = record({"format": text, "stages": table(anything), "best": real(-1, 1.000001), "history": listing(ROW),
                "config": table(anything), "dataset": text, "trial": whole(), "manifest": MANIFEST},
               {**FACTS, "versions": table(text)}, anything)


def read_checkpoint(path):
    """Read a checkpoint of ours or a released one: its content. Raises UserError: it does not hold what it should."""
    content = load_checkpoint(path)
    return must_fit(content, CHECKPOINT if released_state(content) is None else RELEASED,
                    f"checkpoint {quoted(path)}", "Train or download it again")


def check_stages(stages, model, factors, sizes, what, remedy):
    """Compare the stages of a state file with the run that shall resume from them.

    Args: stages: name -> state; model: `CCLNet` of the run; factors: of its learning rates, as
        `processor.optim.image_optimizer`; sizes: Modality -> number of training images; what, remedy: of `must_fit`.
    Raises: UserError.
    """
    of_training = _training_stage(model, factors, sizes)
    check = record({}, {"prompt": _prompt_stage, "prepare": of_training, "finetune": of_training})
    must_fit(stages, check, what, remedy)


def _training_stage(model, factors, sizes):
    """Make the check of `processor.train.TrainState.state_dict`."""
    labels = record({m.value: tensor((n,), torch.int64, low=-1, high=n - 1) for m, n in sizes.items()})
    weights = record({name: tensor(value.shape, value.dtype) for name, value in model.state_dict().items()})
    groups = image_optimizer(model.named_parameters(), 1.0, 0.0, 1.0, factors).param_groups
    prototypes = tensor((None, model.feature_dim), torch.float32, finite=True)
    last = record({"collapsed": whole(), "labels": labels, "pairs": _pairs}, {}, anything)
    memory = record({m.value: record({"prototypes": prototypes}, {}, anything) for m in Modality}, {}, anything)
    under_way = record({"labels": labels, "setup_seconds": real(0), "step": whole(), "means": table(real()),
                        "memory": memory}, {}, anything)

    def of_its_clusters(value, where):      # a prototype, or several, for each cluster
        under_way(value, where)
        for name, found in value["labels"].items():
            rows, clusters = value["memory"][name]["prototypes"], int(found.max()) + 1
            if len(rows) < clusters:
                raise Misfit(f"{where}.memory.{name}.prototypes", rows, f"{clusters} rows or more")

    return record({"epoch": whole(1), "model": weights, "optimizer": _adam([g["params"] for g in groups]),
                   "under_way": maybe(of_its_clusters), "last": maybe(last), "seconds": real(0)}, {}, anything)


def _pairs(value, where):
    """Let linked clusters pass: RGB clusters (M,), IR clusters (M,), similarities (M,)."""
    listing(tensor((None,)), 3)(value, where)
    for clusters in value[:2]:
        tensor(value[0].shape, torch.int64, low=0)(clusters, where)
    tensor(value[0].shape, FLOATS, finite=True)(value[2], where)


def _prompt_stage(value, where):
    """Let pass what `processor.prompt.PromptState.state_dict` gives; sizes are compared when it is loaded."""
    prompts = record({m.value: record({"context": tensor((None, None, None), FLOATS, finite=True)}, {}, anything)
                      for m in Modality})
    record({"epoch": whole(1), "prompts": prompts, "optimizer": anything}, {}, anything)(value, where)
    _adam([[value["prompts"][m.value]["context"] for m in Modality]])(value["optimizer"], f"{where}.optimizer")


def _adam(groups):
    """Make the check of the state of an Adam. Args: groups: for each of its groups a list of its parameters."""
    example = torch.optim.Adam([torch.zeros(1, requires_grad=True)]).state_dict()["param_groups"][0]
    switches = {key: one_of(value) for key, value in example.items() if value is None or type(value) is bool}
    numbers = {"lr": real(0), "base_lr": real(0), "betas": listing(real(0, 0.999999), 2), "eps": real(0),
               "weight_decay": real(0)}
    parameters = [parameter for group in groups for parameter in group]
    position = itertools.count()
    of_groups = [sequence([one_of(next(position)) for _ in group]) for group in groups]
    moments = {n: record({"step": tensor((), FLOATS, low=0, finite=True),
                          "exp_avg": tensor(p.shape, p.dtype, finite=True),
                          "exp_avg_sq": tensor(p.shape, p.dtype, low=0, finite=True)}, {}, anything)
               for n, p in enumerate(parameters)}
    return record({"state": record({}, moments), "param_groups": sequence([
        record({"params": params, **{key: numbers[key] for key in ("betas", "eps", "weight_decay")}},
               {**numbers, **switches}, anything) for params in of_groups])}, {}, anything)
