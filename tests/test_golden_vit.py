"""The vision transformer's outputs: equal to those of CLIP-ReID's released code."""
import itertools

import numpy as np
import pytest
import torch

from model.towers.registry import load_tower
from utils.modality import Modality

CASES = ("96x48_s16", "96x48_s12", "288x144_s16")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def file(golden_methods, tmp_path_factory):
    """A path to the recipe's CLIP, with a smaller text tower."""
    g, path = golden_methods.load(f"vit_{CASES[0]}"), tmp_path_factory.mktemp("clip") / "vit.pt"
    sizes = {name: int(g[f"model_{name}"]) for name in ("width", "layers", "patch", "grid", "embed")}
    torch.save(golden_methods.recipe_vit.clip_vit_state_dict(golden_methods.seed, **sizes, text_width=64,
                                                             text_layers=1), path)
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_outputs(golden_methods, file, case):
    """The tower of either modality, without gradients (PyTorch has another path for that) and with them."""
    g = golden_methods.load(f"vit_{case}")
    height, width, stride, count = (int(g[name]) for name in ("height", "width", "stride", "images"))
    images = golden_methods.draw(f"image_vit_{case}", (count, 3, height, width))
    tower, block_11 = load_tower(file, height=height, width=width, stride=stride), []
    assert tower.describe()["heads"] == int(g["heads"])
    tower.transformer.resblocks[-2].register_forward_hook(lambda block, given, tokens: block_11.append(tokens[:, 0]))
    for m, gradients in itertools.product(Modality, (False, True)):
        with torch.set_grad_enabled(gradients):
            tower.train(gradients)
            patches = tower.stem(images, m)
            pooled, tokens = tower.trunk(patches)
            projection = tower.project(tokens)
        assert patches.shape[2:] == (int(g["rows"]), int(g["cols"]))
        for found, name in ((pooled, "class_token"), (projection, "projection"),
                            (block_11.pop(), "class_token_block11"), (tokens[0, 1:], "patch_tokens"),
                            (tower.positional_embedding, "positional_embedding")):
            bound = 2e-5 * np.abs(g[name]).max()
            np.testing.assert_allclose(found.detach(), g[name], rtol=0, atol=bound, err_msg=name)
