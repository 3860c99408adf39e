"""Colours of images: grey, and the jitter of torchvision's `ColorJitter`, for all images of a batch at once."""
import numpy as np
import torch

from utils.runtime import to_device

LUMA = (0.299, 0.587, 0.114)     # ITU-R 601-2


def grey(images):
    """Weigh the channels of images (B, 3, H, W): (B, 1, H, W)."""
    red, green, blue = (weight * channel for weight, channel in zip(LUMA, images.unbind(1)))
    return (red + green + blue)[:, None]


def draw_jitter(strength, batch, rng):
    """Draw colour jitter as `ColorJitter(strength, strength, strength, strength)` does.

    Returns: (batch, 8): factors on brightness, contrast and saturation, turn of the hue, and the order of the four.
    """
    return np.concatenate([rng.uniform(1 - strength, 1 + strength, (batch, 3)),
                           rng.uniform(-strength, strength, (batch, 1)),
                           rng.permuted(np.tile(np.arange(4), (batch, 1)), axis=1)], axis=1)


def jitter(images, drawn):
    """Carry out colour jitter. Args: images: (B, 3, H, W) in [0, 255]; drawn: (B, 8) of `draw_jitter`.

    Returns: images, changed in place. torchvision rounds to whole numbers after each of the four; this does not.
    """
    for place in range(4, 8):
        for number, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            chosen = np.flatnonzero(drawn[:, place] == number)
            if len(chosen):
                rows = to_device(chosen, images.device)
                factor = to_device(drawn[chosen, number].astype(np.float32), images.device)[:, None, None, None]
                images[rows] = change(images[rows], factor).clamp_(0, 255)
    return images


def _brightness(x, factor):
    return factor * x


def _contrast(x, factor):
    return factor * x + (1 - factor) * grey(x).mean(dim=(1, 2, 3), keepdim=True)


def _saturation(x, factor):
    return factor * x + (1 - factor) * grey(x)


def _hue(x, turn):
    """Turn the hue by a share of the circle; value and chroma stay."""
    value, (red, green, blue) = x.amax(dim=1), x.unbind(1)
    chroma = value - x.amin(dim=1)
    sector = torch.where(value == red, (green - blue) / chroma, torch.where(
        value == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma))
    sector = torch.where(chroma > 0, sector, 0) + 6 * turn[:, 0]
    away = [(sector + offset) % 6 for offset in (5, 3, 1)]      # of red, green and blue
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in away], dim=1)
