"""Augmentation of training images: drawn on the host for a whole batch, applied on the device of the images.

The released pipeline, here for all images of a batch at once (torchvision's names):

    RandomGrayscale -> Pad -> RandomCrop -> RandomHorizontalFlip -> ToTensor -> Normalize -> RandomErasing

and, where it is asked for, ColorJitter in front of ToTensor, and channel exchange, after normalising as in the codes
that use it: Ye et al., "Channel Augmented Joint Learning for Visible-Infrared Recognition" (ICCV 2021). Yang et al.,
"Augmented Dual-Contrastive Aggregation Learning" (ACM MM 2022, ADCA), and PGM and RPNR after it, train on a second view
of each visible image with probability 1.
"""
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from utils.runtime import to_device

MEAN = (0.485, 0.456, 0.406)     # ImageNet's, as the released code does, not CLIP's
STD = (0.229, 0.224, 0.225)
NORMALISATIONS = {               # name -> mean and standard deviation of the channels
    "imagenet": (MEAN, STD),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),         # of CLIP-ReID's vision transformer
}
LUMA = (0.299, 0.587, 0.114)     # weights of the channels in grey, ITU-R 601-2
ERASE_AREA, ERASE_ASPECT, ERASE_TRIES = (0.02, 0.33), (0.3, 3.3), 10    # torchvision's defaults


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images: probabilities of grey, flip, erase and channel exchange; pixels of padding.

    `mean` is the probability of the channels' weighted mean in place of all three, after normalising as the exchange;
    `jitter` the strength of colour jitter, `first_jitter` that of the first of two views.
    """

    grey: float = 0.0
    flip: float = 0.0
    pad: int = 0
    erase: float = 0.0
    channel: float = 0.0
    mean: float = 0.0
    jitter: float = 0.0
    first_jitter: float = 0.0


class Plan(NamedTuple):
    """The random draws for a batch; each row belongs to one image."""

    grey: np.ndarray        # (B,) bool
    corner: np.ndarray      # (B, 2) int64: top, left of the crop; negative ones reach into the zero padding
    flip: np.ndarray        # (B,) bool
    erased: np.ndarray      # (B, 4) int64: top, left, height, width in the cropped image; height 0 erases nothing
    channel: np.ndarray     # (B,) int64: the channel that takes the place of all three, 3 for their mean, -1 for none
    jitter: np.ndarray      # (B, 8): factors on brightness, contrast and saturation, turn of the hue, order of the four

    def part(self, rows):
        """The plan of some of the images. Args: rows: slice or positions."""
        return Plan(*(drawn[rows] for drawn in self))

    def followed_by(self, other):
        """The plan of this one's images and those of another."""
        return Plan(*(np.concatenate(drawn) for drawn in zip(self, other)))


def draw(policy, batch, size, rng):
    """Draw the augmentation of a batch.

    Args: policy: `Augmentation`; batch: B; size: (height, width) in pixels; rng: numpy Generator.
    Returns: `Plan`.
    """
    corner = rng.integers(-policy.pad, policy.pad + 1, (batch, 2))
    flip, grey, erase = (rng.random(batch) < chance for chance in (policy.flip, policy.grey, policy.erase))
    erased = draw_rectangles(batch, size, rng) * erase[:, None]
    exchange = rng.random(batch)        # last, so that the draws before it are those without it
    channel = np.where(exchange < policy.channel, rng.integers(0, 3, batch),
                       np.where(exchange < policy.channel + policy.mean, 3, -1))
    jitter = np.concatenate([rng.uniform(1 - policy.jitter, 1 + policy.jitter, (batch, 3)),
                             rng.uniform(-policy.jitter, policy.jitter, (batch, 1)),
                             rng.permuted(np.tile(np.arange(4), (batch, 1)), axis=1)], axis=1)
    return Plan(grey, corner, flip, erased, channel, jitter)


def draw_rectangles(batch, size, rng):
    """Draw what random erasing overwrites in each image.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as torchvision's `RandomErasing.get_params` draws
    it: up to 10 tries of an area uniform in 2-33 % of the image and an aspect ratio log-uniform in 0.3-3.3, height
    and width rounded; the first rectangle that is smaller than the image in both directions is taken.

    Args: size: (height, width) in pixels; rng: numpy Generator.
    Returns: (batch, 4) int64: top, left, height, width; the latter two are 0 where no try fits.
    """
    height, width = size
    area = height * width * rng.uniform(*ERASE_AREA, (batch, ERASE_TRIES))
    aspect = np.exp(rng.uniform(*np.log(ERASE_ASPECT), (batch, ERASE_TRIES)))
    h, w = (np.rint(np.sqrt(v)).astype(np.int64) for v in (area * aspect, area / aspect))
    fits = (h < height) & (w < width)
    first, image = fits.argmax(axis=1), np.arange(batch)
    h, w = (np.where(fits.any(axis=1), v[image, first], 0) for v in (h, w))
    return np.stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], axis=1)


def apply(images, plan, normalisation="imagenet"):
    """Carry out a plan: crop out of zero padding, flip, grey, jitter, normalise, exchange channels, erase.

    All images are cut out at once: a row of pixels is a piece of memory, whose start the host computes. Image by image
    the host would keep a GPU waiting. Everything that was drawn is sent in one copy.

    Args: images: (B, 3, H, W) uint8; plan: `Plan` of these images; normalisation: of NORMALISATIONS.
    Returns: (B, 3, H, W) float32, normalised; what is erased is 0, the mean colour.
    """
    batch, _, height, width = images.shape
    pad, down, across = int(np.abs(plan.corner).max(initial=0)), np.arange(height), np.arange(width)
    row = np.arange(batch)[:, None] * (height + 2 * pad) + plan.corner[:, :1] + pad + down
    start = 3 * (row * (width + 2 * pad) + plan.corner[:, 1:] + pad)
    top, left, h, w = plan.erased.T[..., None]
    drawn = np.concatenate([start, (down >= top) & (down < top + h), (across >= left) & (across < left + w),
                            plan.flip[:, None]], axis=1)
    start, *marks = to_device(drawn, images.device).split([height, height, width, 1], dim=1)
    down, across, flip = (mark.bool() for mark in marks)
    bytes_of_all = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).flatten()
    out = bytes_of_all.unfold(0, 3 * width, 1).index_select(0, start.flatten()).view(batch, height, width, 3)
    out = torch.where(flip[..., None, None], out.flip(2), out).permute(0, 3, 1, 2).float()

    def change(chosen, function, *arguments):
        if chosen.any():
            rows = to_device(np.flatnonzero(chosen), out.device)
            out[rows] = function(out[rows], *arguments)

    jittered = (plan.jitter[:, :4] != (1, 1, 1, 0)).any(axis=1)
    mean, std = _mean_and_std(normalisation, out.device)
    change(plan.grey, grey)
    change(jittered, jitter, plan.jitter[jittered])
    out.sub_(mean).div_(std)
    for channel in range(3):
        change(plan.channel == channel, torch.narrow, 1, channel, 1)
    change(plan.channel == 3, grey)
    return out.masked_fill_(down[:, None, :, None] & across[:, None, None], 0)


def normalise(images, normalisation="imagenet"):
    """Normalise images without augmentation: scale to [0, 1], minus the mean, over the standard deviation.

    Args:
        images: (B, 3, H, W) in [0, 255], uint8 or float.
        normalisation: "imagenet", "clip" or "half" (INPUT.NORMALISATION).

    Returns:
        (B, 3, H, W) float32 tensor on the same device.

    Example:
        >>> normalise(torch.tensor([0, 255]).repeat(1, 3, 1, 1), "half")[0, 0]
        tensor([[-1.,  1.]])
    """
    mean, std = _mean_and_std(normalisation, images.device)
    return images.to(torch.float32, copy=True).sub_(mean).div_(std)


@functools.lru_cache
def _mean_and_std(normalisation, device):
    """Return a normalisation's numbers for bytes on a device: (2, 3, 1, 1) float32.

    torchvision's `normalize` would wait for a GPU in every batch.
    """
    of_bytes = np.array([[255 * v for v in values] for values in NORMALISATIONS[normalisation]], np.float32)
    return to_device(of_bytes, device)[..., None, None]


def grey(images):
    """Weigh the channels of images (B, 3, H, W): (B, 1, H, W)."""
    red, green, blue = (weight * channel for weight, channel in zip(LUMA, images.unbind(1)))
    return (red + green + blue)[:, None]


def jitter(images, drawn):
    """Carry out torchvision's `ColorJitter`. Args: images: (B, 3, H, W) in [0, 255]; drawn: `Plan.jitter`, (B, 8).

    Returns: images, changed in place. torchvision rounds to whole numbers after each of the four; this does not.
    """
    changes = (lambda x, factor: factor * x,
               lambda x, factor: factor * x + (1 - factor) * grey(x).mean(dim=(1, 2, 3), keepdim=True),
               lambda x, factor: factor * x + (1 - factor) * grey(x), _hue)
    for place in range(4, 8):
        for number, change in enumerate(changes):
            chosen = np.flatnonzero(drawn[:, place] == number)
            if len(chosen):
                rows = to_device(chosen, images.device)
                factor = to_device(drawn[chosen, number].astype(np.float32), images.device)[:, None, None, None]
                images[rows] = change(images[rows], factor).clamp_(0, 255)
    return images


def _hue(x, turn):
    """Turn the hue by a share of the circle; value and chroma stay."""
    value, (red, green, blue) = x.amax(dim=1), x.unbind(1)
    chroma = value - x.amin(dim=1)
    sector = torch.where(value == red, (green - blue) / chroma, torch.where(
        value == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma))
    sector = torch.where(chroma > 0, sector, 0) + 6 * turn[:, 0]
    away = [(sector + offset) % 6 for offset in (5, 3, 1)]      # of red, green and blue
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in away], dim=1)
