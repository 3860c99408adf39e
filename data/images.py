"""Image files: decoding, more than 8 bits brought to 8, and the images of one modality as batches read them."""
import os

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from tqdm.contrib.concurrent import thread_map

from utils.errors import UserError, explained, quoted
from utils.runtime import to_device

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")    # that are decoded; Pillow would run Ghostscript on an EPS file
FREE_SHARE = 0.25           # of the GPU's free memory that the images of a run may take
OF_DATA_SET = "replace it by the file of the original data set, or correct the lists of the data set"
READ_AT_ONCE = 256          # images on their way to the GPU


class ImageBank:
    """The resized images of one modality and split.

    Args:
        images: (N, H, W, 3) uint8 array, memory-mapped or not.
        device: where batches are wanted.
        paths: (N,) names for messages, or none.
        cache: "mmap" reads batches from the array, "device" from a copy on the device.
        normalisation: what a model that sees the images expects, of `data.augment.NORMALISATIONS`.
        cameras: (N,) numbers, 0 where they are not given.

    Example:
        >>> ImageBank(np.zeros((5, 96, 48, 3), np.uint8)).batch([0, 4]).shape
        torch.Size([2, 3, 96, 48])
    """

    def __init__(self, images, device="cpu", paths=(), cache="mmap", normalisation="imagenet", cameras=None):
        self.cameras = np.zeros(len(images), np.int64) if cameras is None else cameras
        self.images, self.paths, self.normalisation = images, paths, normalisation
        self.device = torch.device(device)
        self._copy = None
        if cache == "device":
            self._copy = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
            for start in range(0, len(images), READ_AT_ONCE):       # the host never holds a second copy
                part = slice(start, start + READ_AT_ONCE)
                self._copy[part] = torch.from_numpy(np.array(images[part]))

    def __len__(self):
        return len(self.images)

    def names(self, indices):
        """Return the names of images for messages; their positions where names are unknown."""
        return [self.paths[i] if self.paths else f"number {i}" for i in indices]

    def batch(self, indices):
        """Read images (B, 3, H, W) uint8 onto the device, channels last in memory."""
        positions = np.ascontiguousarray(indices)
        if self._copy is None:
            images = to_device(np.ascontiguousarray(self.images[positions]), self.device)
        else:
            images = self._copy.index_select(0, to_device(positions, self.device))
        return images.permute(0, 3, 1, 2)


def pick_cache(name, size, device):
    """Choose where images of `size` bytes are held, "mmap" or "device": as named, unless the name is "auto".

    auto: on a GPU if they fit into FREE_SHARE of its free memory, else memory-mapped.
    """
    if name != "auto":
        return name
    fits = torch.device(device).type == "cuda" and size <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]
    return "device" if fits else "mmap"


def file_stat(path, remedy=OF_DATA_SET):
    """Call os.stat on an image. Raises UserError: it is missing, a link that leads nowhere, or no file."""
    if not os.path.isfile(path):
        raise UserError(f"image {quoted(path)} is missing; {remedy}")
    return os.stat(path)


def in_parallel(function, items, description):
    """Call function(item) for all items on all cores, with a progress bar: list. For work that releases the GIL."""
    return thread_map(function, items, max_workers=os.cpu_count(), unit="image", desc=description, mininterval=1,
                      leave=False, disable=None if len(items) else True)


def read_image(path, height, width, remedy=OF_DATA_SET, grey_range=None, resize="lanczos"):
    """Decode one image file, convert it to RGB and resize it: (height, width, 3) uint8.

    Args: remedy, grey_range: as `decode_image`; resize: as INPUT.RESIZE. Raises: UserError: as `decode_image`.
    """
    image = decode_image(path, remedy, grey_range)
    return np.asarray(image.resize((width, height), Image.Resampling[resize.upper()]))


def decode_image(path, remedy=OF_DATA_SET, grey_range=None):
    """Decode one image file, upright, into an RGB image of Pillow.

    Args:
        remedy: what to do about a file that is missing or does not decode.
        grey_range: (low, high), the values that become 0 and 255 in an image of more than 8 bits, and those between
            them linearly. It is that of a whole data set (`data.manifest.data_manifest`): no image has its own.
    Raises: UserError: as `stored_image`, or the image has more than 8 bits and no range is given.
    """
    image = stored_image(path, remedy)
    if is_deep(image):
        if grey_range is None:
            raise UserError(f"image {quoted(path)} has more than 8 bits a pixel (mode {image.mode}), and nothing says "
                            "which values become black and white; bring it to 8 bits as the training images were "
                            f"(docs/data.md), or {remedy}")
        low, high = grey_range
        grey = (np.asarray(image, np.float64) - low) * (255 / (high - low))
        image = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def is_deep(image):
    """Tell whether an image of Pillow has more than 8 bits a pixel."""
    return image.mode[0] in "IF"


def stored_image(path, remedy=OF_DATA_SET):
    """Decode one image file, upright, in the mode it is stored in, such as "RGB", "L", "I;16" or "F".

    Args: remedy: what to do about a file that is missing or does not decode.
    Raises: UserError: the file is missing, of another format than FORMATS, or does not decode.
    """
    file_stat(path, remedy)
    with explained(f"image {quoted(path)} does not decode", remedy), Image.open(path, formats=FORMATS) as image:
        if not is_deep(image) and ";16" in str(image.tile):
            raise ValueError(f"16 bits in each channel of {image.mode}, of which 8 would be lost")
        image.load()
        if is_deep(image) and not np.isfinite(np.asarray(image)).all():
            raise ValueError("pixels that are NaN or infinite")
        return _upright(image)


def pixel_range(image):
    """Return the least and greatest value of an image of Pillow; of more than 8 bits, the 1st and 99th percentile too.

    Returns: list of 2 or 4 numbers.
    """
    pixels = np.asarray(image)
    percentiles = np.percentile(pixels, (1, 99)) if is_deep(image) else ()
    return [float(value) for value in (pixels.min(), pixels.max(), *percentiles)]


def _upright(image):
    """Turn an image as its EXIF orientation says; damaged EXIF data say nothing."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:       # Pillow raises many kinds on damaged EXIF data
        return image
    return ImageOps.exif_transpose(image) if turned else image
