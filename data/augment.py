"""Batched augmentation on the device of the images, with the released distributions."""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)     # ImageNet's, as the released code does, not CLIP's
STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)     # ITU-R 601-2
CACHED_IMAGES = 8                # that a CPU treats at a time, so that they stay in its cache
ERASE_AREA, ERASE_ASPECT, ERASE_TRIES = (0.02, 0.4), 0.3, 100


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images: probabilities of grey, flip and erase; pixels of zero padding."""

    grey: float = 0.0
    flip: float = 0.0
    pad: int = 0
    erase: float = 0.0


def normalise(images):
    """uint8 or [0, 255] images (B, 3, H, W) -> float32, scaled to [0, 1], minus mean, over standard deviation.

    The result lies channels last in memory, as the convolutions want it.
    """
    return _normalise_rows(images.permute(0, 2, 3, 1).float().contiguous()).permute(0, 3, 1, 2)


def _normalise_rows(pixels):
    """Normalise (B, H, W, 3) float32 in place; whole rows at once, because an innermost size of 3 is slow."""
    width = pixels.shape[2]
    scale, shift = (torch.tensor(v, device=pixels.device).repeat(width) for v in (
        [1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD)]))
    rows = pixels.view(*pixels.shape[:2], -1)
    torch.addcmul(shift, rows, scale, out=rows)
    return pixels


def augment(images, policy, rng):
    """Random grey, zero pad and crop, flip, normalise, random erasing.

    Args: images: (B, 3, H, W) uint8, channels last in memory where speed matters; policy: `Augmentation`;
        rng: numpy Generator, on the host.
    Returns: (B, 3, H, W) float32, normalised, channels last in memory.
    """
    batch, _, height, width = images.shape
    views = _crop_and_flip(images.permute(0, 2, 3, 1), policy, rng)
    grey = rng.random(batch) < policy.grey
    to_grey = torch.tensor(LUMA, device=images.device)[:, None].repeat(1, 3)
    out = torch.empty(batch, height, width, 3, device=images.device)
    size = CACHED_IMAGES if images.device.type == "cpu" else batch
    for start in range(0, batch, size):
        pixels = out[start:start + size].copy_(torch.stack(views[start:start + size]))
        for run in _runs(grey[start:start + size]):
            flat = pixels[run].view(-1, 3)
            flat.copy_(flat @ to_grey)
        _normalise_rows(pixels)
    fill = torch.tensor(MEAN, device=images.device)
    for position in np.flatnonzero(rng.random(batch) < policy.erase):
        _erase(out[position], fill, rng)
    return out.permute(0, 3, 1, 2)


def _runs(marked):
    """Slices of consecutive marked positions."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    return [slice(first, last) for first, last in edges.reshape(-1, 2).tolist()]


def _crop_and_flip(images, policy, rng):
    """Views (H, W, 3), some of them copies, of images (B, H, W, 3): cropped out of a black border, then flipped."""
    batch, height, width, _ = images.shape
    corners = rng.integers(0, 2 * policy.pad + 1, (batch, 2)).tolist()
    padded = F.pad(images, (0, 0, *4 * [policy.pad])) if policy.pad else images
    views = [image[top:top + height, left:left + width] for image, (top, left) in zip(padded, corners)]
    flipped = rng.random(batch) < policy.flip
    return [view.flip(1) if flip else view for view, flip in zip(views, flipped)]


def _erase(image, fill, rng):
    """Overwrite a random rectangle of one normalised image (H, W, 3) with fill (3,), in place.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as the re-identification baselines of the field
    use it: 2-40 % of the area, aspect ratio 0.3-3.3, filled with the channel means after normalisation.
    """
    height, width, _ = image.shape
    for _ in range(ERASE_TRIES):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = rng.uniform(ERASE_ASPECT, 1 / ERASE_ASPECT)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            image[top:top + h, left:left + w] = fill
            return
