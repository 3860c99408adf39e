"""AGW's numbers: equal to those of the released code of PGM and ADCA, which was run in float64."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.augment import MEAN, STD
from data.images import ImageBank
from data.records import Retrieval
from model.released import model_from_checkpoint, released_name
from processor.evaluate import evaluate
from processor.features import embed
from utils.modality import Modality

pytestmark = pytest.mark.usefixtures("one_thread")


class Case:
    """A file's numbers, its images, and the model of the recipe's weights, read as a released checkpoint is."""

    def __init__(self, golden, name):
        self.numbers = golden.load(name)
        height, width = int(self.numbers["height"]), int(self.numbers["width"])
        self.images = {m: golden.draw(f"{name}.{m.value}", (count, 3, height, width))
                       for m, count in zip(Modality, (4, 3))}
        self.direction = golden.draw(f"{name}.direction", (7, 2048))
        state = {f"module.{key}": value for key, value in golden.recipe_field.agw_state_dict(
            golden.seed, "plain" not in name).items()}
        self.model = model_from_checkpoint({"state_dict": state, "epoch": 3, "best_mAP": 0.5}, "x.pth", height, width)

    def check(self, name, found):
        expected = self.numbers[name]
        np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.fixture(scope="module", params=["agw_64x32", "agw_plain_64x32"])
def case(golden_field, request):
    return Case(golden_field, request.param)


@pytest.mark.parametrize("case", ["agw_96x48"], indirect=True, scope="module")
def test_features_for_clusters_and_tests(case):
    """Means over mirror images as the loop takes them for clusters, and of unit length as test.py ranks them."""
    deviation, mean = (torch.tensor(values)[:, None, None] for values in (STD, MEAN))
    banks = {m: ImageBank((255 * (rows[:2] * deviation + mean)).permute(0, 2, 3, 1).numpy())
             for m, rows in case.images.items()}
    data = SimpleNamespace(test={m: SimpleNamespace(persons=np.arange(2), cameras=np.zeros(2, int)) for m in Modality})
    retrieval = Retrieval("two people", "v2t", "regdb", Modality.RGB, np.arange(2), (np.arange(2),), (0,))
    tested, = evaluate(case.model, data, banks, [retrieval], 64, "fp32", mirrored=True)
    for m in Modality:
        clustered = embed(case.model, banks[m], m, batch_size=64, precision="fp32", mirrored=True)["feature"]
        case.check(f"cluster_{m.value}", clustered)
        case.check(f"test_{m.value}", tested.features[m][1])


def test_outputs_gradients_and_statistics(case):
    """Features in evaluation mode, a step's features, gradients and running statistics."""
    model, images = case.model.double(), {m: rows.double() for m, rows in case.images.items()}
    pooled, own = [], {released_name(name): value for name, value in model.named_parameters()}
    for m in Modality:
        case.check(f"eval_{m.value}", model.encode_image(images[m][:2], m).feature)
    model.neck.register_forward_pre_hook(lambda neck, given: pooled.append(given[0]))
    features = torch.cat(list(model.train()(*images.values())["feature"].values()))
    loss = (features * case.direction).mean()
    loss.backward()
    for name, found in (("train_features", features), ("train_pooled", pooled[0]), ("loss", loss)):
        case.check(name, found)
    buffers = {released_name(name): value for name, value in model.named_buffers()}
    for name in case.numbers.files:
        kind, _, of = name.partition(":")
        if kind == "gradient":
            case.check(name, own[of].grad if own[of].numel() <= 2500 else own[of].grad[:8, :8])
        elif kind == "gradient_norm":
            case.check(name, own[of].grad.norm())
        elif of:
            case.check(name, buffers[f"{of}.{kind}"])
    assert sum(value.grad is not None for value in own.values()) == int(case.numbers["parameters_with_gradient"])
