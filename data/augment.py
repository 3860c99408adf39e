"""Batched augmentation on the device of the images, with the released distributions."""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)     # ImageNet's, as the released code does, not CLIP's
STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)     # ITU-R 601-2
ERASE_AREA, ERASE_ASPECT, ERASE_TRIES = (0.02, 0.4), 0.3, 100


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images: probabilities of grey, flip and erase; pixels of zero padding."""

    grey: float = 0.0
    flip: float = 0.0
    pad: int = 0
    erase: float = 0.0


def normalise(images):
    """uint8 or [0, 255] images (B, 3, H, W) -> float32, scaled to [0, 1], minus mean, over standard deviation."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    return (images.float() - mean) / std


def augment(images, policy, rng):
    """Random grey, zero pad and crop, flip, normalise, random erasing.

    Args: images: (B, 3, H, W) uint8; policy: `Augmentation`; rng: numpy Generator, on the host.
    Returns: (B, 3, H, W) float32, normalised.
    """
    batch = len(images)
    if policy.pad:
        images = _pad_and_crop(images, policy.pad, rng)
    flipped = torch.from_numpy(rng.random(batch) < policy.flip).to(images.device)
    images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
    images = images.float()
    grey = (rng.random(batch) < policy.grey).nonzero()[0]
    if len(grey):
        luma = (images[grey] * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images[grey] = luma.expand(-1, 3, -1, -1)
    images = normalise(images)
    for position in (rng.random(batch) < policy.erase).nonzero()[0]:
        _erase(images[position], rng)
    return images


def _pad_and_crop(images, pad, rng):
    height, width = images.shape[2:]
    padded = F.pad(images, (pad, pad, pad, pad))
    corners = rng.integers(0, 2 * pad + 1, (len(images), 2))
    return torch.stack([image[:, top:top + height, left:left + width]
                        for image, (top, left) in zip(padded, corners.tolist())])


def _erase(image, rng):
    """Overwrite a random rectangle of one normalised image (3, H, W) with MEAN, in place.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as the re-identification baselines of the field
    use it: 2-40 % of the area, aspect ratio 0.3-3.3, filled with the channel means after normalisation.
    """
    height, width = image.shape[1:]
    for _ in range(ERASE_TRIES):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = rng.uniform(ERASE_ASPECT, 1 / ERASE_ASPECT)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            image[:, top:top + h, left:left + w] = image.new_tensor(MEAN).view(3, 1, 1)
            return
