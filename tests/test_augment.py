"""The batched augmentation against one image at a time, with the same draws."""
import math

import numpy as np
import pytest
import torch

from data import augment as module
from data.augment import LUMA, MEAN, STD, Augmentation, augment


def one_by_one(images, policy, rng):
    """(B, H, W, 3) uint8 -> (B, H, W, 3) float64; draws: corners, flips, greys, erasures, then the rectangles."""
    batch, height, width, _ = images.shape
    pad = policy.pad
    corners = rng.integers(0, 2 * pad + 1, (batch, 2))
    flip, grey, erase = (rng.random(batch) < chance for chance in (policy.flip, policy.grey, policy.erase))
    out = np.empty(images.shape)
    for i, (top, left) in enumerate(corners):
        image = np.pad(images[i].astype(float), ((pad, pad), (pad, pad), (0, 0)))[top:top + height, left:left + width]
        image = image[:, ::-1] if flip[i] else image
        image = np.repeat(image @ np.array(LUMA)[:, None], 3, axis=2) if grey[i] else image
        out[i] = (image / 255 - MEAN) / STD
        for _ in range(100 if erase[i] else 0):
            area, aspect = rng.uniform(0.02, 0.4) * height * width, rng.uniform(0.3, 1 / 0.3)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                out[i, top:top + h, left:left + w] = MEAN
                break
    return out


@pytest.mark.parametrize("cached", [1, 3000, 2 ** 17])
@pytest.mark.parametrize("size", [(7, 5), (9, 6), (32, 16), (1, 1)])
@pytest.mark.parametrize("policy", [Augmentation(), Augmentation(0.5, 0.5, 3, 0.5), Augmentation(1, 1, 10, 1)])
def test_equals_one_image_at_a_time(cached, size, policy, monkeypatch):
    """Whatever the number of images treated together, and however they lie in memory."""
    monkeypatch.setattr(module, "CACHED", cached)
    images = np.random.default_rng(0).integers(0, 256, (11, *size, 3), dtype=np.uint8)
    expected, after = one_by_one(images, policy, rng := np.random.default_rng(1)), rng.random()
    channels_last = torch.from_numpy(images).permute(0, 3, 1, 2)
    for given in (channels_last, channels_last.contiguous()):
        out = augment(given, policy, rng := np.random.default_rng(1))
        np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
        assert rng.random() == after and out.permute(0, 2, 3, 1).is_contiguous()


def test_no_images():
    assert augment(torch.zeros(0, 3, 8, 4, dtype=torch.uint8), Augmentation(0.5, 0.5, 3, 0.5),
                   np.random.default_rng(0)).shape == (0, 3, 8, 4)
