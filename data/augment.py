"""Batched augmentation on the device of the images, with the released distributions."""
import math
from dataclasses import dataclass

import torch

MEAN = (0.485, 0.456, 0.406)     # ImageNet's, as the released code does, not CLIP's
STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)     # ITU-R 601-2
CACHED = 2 ** 17                 # values that a CPU treats at a time, so that they stay in its cache
GREY_PIXELS = 4                  # in a row of the product that makes grey: rows of 3 numbers are slow
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
    pixels = images.permute(0, 2, 3, 1).float().contiguous()
    _normalise(pixels, *_scale_and_shift(pixels), pixels)
    return pixels.permute(0, 3, 1, 2)


def _together(images):
    """How many of images (B, H, W, 3) are treated at a time: as fit the cache on a CPU, all elsewhere."""
    return max(1, CACHED // math.prod(images.shape[1:]) if images.device.type == "cpu" else len(images))


def _scale_and_shift(images):
    """What `_normalise` needs for images (B, H, W, 3): two tensors (3 W,), 1 / (255 std) and -mean / std."""
    return (_row(v, images) for v in ([1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD)]))


def _row(values, images):
    """Values (3,) repeated over a row of images (B, H, W, 3): (3 W,)."""
    return torch.tensor(values, device=images.device).repeat(images.shape[2])


def _normalise(pixels, scale, shift, out):
    """Normalise (B, H, W, 3) float32 into out; whole rows at once, because an innermost size of 3 is slow."""
    torch.addcmul(shift, pixels.flatten(2), scale, out=out.flatten(2))


def augment(images, policy, rng):
    """Random grey, zero pad and crop, flip, normalise, random erasing.

    Args: images: (B, 3, H, W) uint8, channels last in memory where speed matters; policy: `Augmentation`;
        rng: numpy Generator, on the host.
    Returns: (B, 3, H, W) float32, normalised, channels last in memory.
    """
    images = images.permute(0, 2, 3, 1)
    batch, height, width, _ = images.shape
    corners = rng.integers(0, 2 * policy.pad + 1, (batch, 2)).tolist()
    flip, grey, erase = (rng.random(batch) < chance for chance in (policy.flip, policy.grey, policy.erase))
    rectangles = [_rectangle(height, width, rng) if chosen else None for chosen in erase]

    out = torch.empty(batch, height, width, 3, device=images.device)
    size = _together(images)
    canvas = images.new_zeros(min(size, batch), height + 2 * policy.pad, width + 2 * policy.pad, 3)
    (scale, shift), fill, to_grey = _scale_and_shift(out), _row(MEAN, out), _grey_matrix(out)
    for start in range(0, batch, size):
        block = slice(start, start + size)
        done = out[block]
        pixels = done.copy_(_cropped_and_flipped(images[block], policy.pad, corners[block], flip[block], canvas))
        if grey[block].any():
            pixels = _greyed(pixels, grey[block], to_grey)
        _normalise(pixels, scale, shift, done)
        for image, rectangle in zip(done, rectangles[block]):
            if rectangle:
                _erase(image, rectangle, fill)
    return out.permute(0, 3, 1, 2)


def _cropped_and_flipped(images, pad, corners, flip, canvas):
    """Images (B, H, W, 3) uint8, cropped out of a black border at corners (B, 2), then flipped where flip (B,).

    canvas: zeros with room for the images and the border; the result may share its memory.
    """
    height, width = images.shape[1:3]
    canvas = canvas[:len(images)]
    canvas[:, pad:pad + height, pad:pad + width] = images
    views = [image[top:top + height, left:left + width] for image, (top, left) in zip(canvas, corners)]
    views = [view.flip(1) if flipped else view for view, flipped in zip(views, flip)]
    return torch.stack(views) if len(views) > 1 else views[0][None]


def _grey_matrix(images):
    """Takes K pixels, side by side, to their grey values: (3 K, 3 K); K is `GREY_PIXELS` or a divisor of it."""
    count = math.gcd(GREY_PIXELS, images.shape[1] * images.shape[2])
    luma = torch.tensor(LUMA, device=images.device)[:, None].repeat(1, 3)
    return torch.block_diag(*[luma] * count)


def _greyed(pixels, chosen, to_grey):
    """Pixels (B, H, W, 3) float32, grey where chosen (B,)."""
    grey = (pixels.view(-1, len(to_grey)) @ to_grey).view_as(pixels)
    if chosen.all():
        return grey
    return torch.where(torch.from_numpy(chosen).to(pixels.device)[:, None, None, None], grey, pixels)


def _erase(image, rectangle, fill):
    """Overwrite a (top, left, height, width) of an image (H, W, 3) with a row's worth of fill (3 W,), in place."""
    top, left, height, width = rectangle
    image.flatten(1)[top:top + height, 3 * left:3 * (left + width)] = fill[:3 * width]


def _rectangle(height, width, rng):
    """What to erase of an image: (top, left, height, width), or None if none fits.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as the re-identification baselines of the field
    use it: 2-40 % of the area, aspect ratio 0.3-3.3, filled with the channel means after normalisation.
    """
    for _ in range(ERASE_TRIES):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = rng.uniform(ERASE_ASPECT, 1 / ERASE_ASPECT)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return None
