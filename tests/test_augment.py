"""The augmentation of a batch: one image at a time with the same draws, and torchvision's pipeline in distribution."""
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision import transforms
from torchvision.transforms import functional as TF

from data.augment import LUMA, MEAN, STD, Augmentation, apply, draw, draw_rectangles, normalise
from utils.seeding import numpy_rng

DRAWS = 1500
SYSU_RGB = Augmentation(0.5, 0.5, 10, 0.5)
JITTER = TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue


def one_by_one(images, plan):
    """(B, H, W, 3) uint8 -> (B, H, W, 3) float64, by NumPy, and torchvision for jitter."""
    height, width = images.shape[1:3]
    pad = 12
    out = np.empty(images.shape)
    for i, (grey, corner, flip, (top, left, h, w), channel, drawn) in enumerate(zip(*plan)):
        image = np.pad(images[i].astype(float), ((pad, pad), (pad, pad), (0, 0)))
        image = image[pad + corner[0]:pad + corner[0] + height, pad + corner[1]:pad + corner[1] + width]
        image = image[:, ::-1] if flip else image
        image = np.repeat(image @ np.array(LUMA)[:, None], 3, axis=2) if grey else image
        image = torch.from_numpy(image.transpose(2, 0, 1) / 255)
        for number in drawn[4:].astype(int) if drawn[3] else ():
            image = JITTER[number](image, drawn[number])
        image = 255 * image.numpy().transpose(1, 2, 0)
        out[i] = (image / 255 - MEAN) / STD
        if channel >= 0:
            out[i] = (out[i] @ LUMA)[..., None] if channel == 3 else out[i][:, :, channel:channel + 1]
        out[i, top:top + h, left:left + w] = 0
    return out


@pytest.mark.parametrize("size", [(9, 6), (32, 16)])
@pytest.mark.parametrize("policy", [Augmentation(), Augmentation(0.5, 0.5, 3, 0.5), Augmentation(1, 1, 10, 1),
                                    Augmentation(0.2, 0.5, 3, 0.5, 0.4, 0.4, jitter=0.5)])
def test_equals_one_image_at_a_time(size, policy):
    images = np.random.default_rng(0).integers(0, 256, (11, *size, 3), dtype=np.uint8)
    plan = draw(policy, 11, size, np.random.default_rng(1))
    channels_last = torch.from_numpy(images).permute(0, 3, 1, 2)
    for given in (channels_last, channels_last.contiguous()):
        out = apply(given, plan)
        assert out.dtype == torch.float32
        assert np.array_equal(given.permute(0, 2, 3, 1), images)        # what was given is left as it was
        np.testing.assert_allclose(out.permute(0, 2, 3, 1), one_by_one(images, plan),
                                   atol=1e-3 if policy.jitter else 1e-5)     # torchvision has fewer digits of LUMA


def test_channels_and_jitter_are_drawn_evenly():
    """A channel in place of all, or their mean, with its probability; jitter's four changes in any order."""
    counts = np.bincount(draw(Augmentation(channel=0.6, mean=0.3), DRAWS, (8, 4), np.random.default_rng(0)).channel + 1)
    assert len(counts) == 5 and chisquare(counts, DRAWS * np.array([0.1, 0.2, 0.2, 0.2, 0.3])).pvalue > 1e-3
    drawn = draw(Augmentation(jitter=0.5), DRAWS, (8, 4), np.random.default_rng(0)).jitter
    for column, low in zip(drawn.T, (0.5, 0.5, 0.5, -0.5)):
        assert kstest(column, "uniform", (low, 1)).pvalue > 1e-3
    _, counts = np.unique(drawn[:, 4:], axis=0, return_counts=True)
    assert len(counts) == 24 and chisquare(counts).pvalue > 1e-3


def test_channel_exchange_leaves_all_other_draws_as_they_are_without_it():
    with_it, without = (draw(Augmentation(0.5, 0.5, 3, 0.5, p), 50, (24, 12), np.random.default_rng(0)) for p in (1, 0))
    assert (without.channel == -1).all() and (with_it.channel >= 0).all()
    for name in ("grey", "corner", "flip", "erased"):
        np.testing.assert_array_equal(getattr(with_it, name), getattr(without, name))


@pytest.mark.parametrize("name, mean, std", [
    ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
def test_normalise_is_torchvisions(name, mean, std):
    images = torch.randint(0, 256, (3, 3, 8, 4), dtype=torch.uint8)
    expected, plan = transforms.Normalize(mean, std)(images / 255), draw(Augmentation(), 3, (8, 4), numpy_rng(0))
    for given in (images, images.float()):
        before = given.clone()
        torch.testing.assert_close(normalise(given, name), expected)
        assert torch.equal(given, before)
    torch.testing.assert_close(apply(images, plan, name), expected)


@pytest.mark.parametrize("size", [(288, 144), (30, 200)])
def test_erased_rectangles_are_distributed_as_torchvisions(size):
    """Area, aspect ratio and place of what is erased, and the share of images in which no try fits."""
    torch.manual_seed(0)        # get_params reads torch's global generator
    blank = torch.ones(1, *size)
    theirs = np.array([transforms.RandomErasing.get_params(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
                       for _ in range(DRAWS)])
    theirs[(theirs[:, 2:] == size).all(axis=1), 2:] = 0     # no try fitted
    ours = draw_rectangles(DRAWS, size, np.random.default_rng(0))
    top, left, h, w = ours.T
    assert ours.min() >= 0 and (top + h <= size[0]).all() and (left + w <= size[1]).all()
    top, left, h, w = ours[h > 0].T
    assert [top.min(), left.min(), (top + h).max(), (left + w).max()] == [0, 0, *size]      # up to the edges
    for name, of in {"fits": lambda top, left, h, w: h > 0, "area": lambda top, left, h, w: h * w,
                     "aspect": lambda top, left, h, w: h / np.maximum(w, 1),
                     "share of the room above": lambda top, left, h, w: (top + 0.5) / (size[0] - h + 1),
                     "share of the room at the left": lambda top, left, h, w: (left + 0.5) / (size[1] - w + 1)}.items():
        # where no try fits, ours still has a place
        found, expected = (of(*drawn[drawn[:, 2] > 0 if name != "fits" else slice(None)].T) for drawn in (ours, theirs))
        assert ks_2samp(found, expected).pvalue > 1e-3, name


def test_moments_are_those_of_torchvisions_pipeline():
    """Mean, standard deviation and skew of every channel in a 4 x 2 grid of places, over many draws of one image."""
    policy, size, draws = SYSU_RGB, (48, 24), 500
    rows, columns = np.mgrid[:48, :24]
    image = np.stack([40 + 4 * rows, 250 - 8 * columns, 90 + 3 * ((rows + columns) % 40)], axis=2).astype(np.uint8)
    torch.manual_seed(1)
    transform = transforms.Compose([
        Image.fromarray, transforms.RandomGrayscale(policy.grey), transforms.Pad(policy.pad),
        transforms.RandomCrop(size), transforms.RandomHorizontalFlip(policy.flip), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD), transforms.RandomErasing(policy.erase)])
    theirs = torch.stack([transform(image) for _ in range(draws)])
    given = torch.from_numpy(image).permute(2, 0, 1).expand(draws, -1, -1, -1)
    ours = apply(given, draw(policy, draws, size, np.random.default_rng(1)))
    for name, of in {"mean": lambda v: v, "square": lambda v: v ** 2, "cube": lambda v: v ** 3,
                     "channels together": lambda v: v * v.roll(1, dims=1)}.items():
        found, expected = (torch.nn.functional.avg_pool2d(of(v.double()), 12) for v in (ours, theirs))
        error = (found.var(0) / draws + expected.var(0) / draws).sqrt()
        assert ((found.mean(0) - expected.mean(0)).abs() < 4.5 * error + 0.01).all(), name
