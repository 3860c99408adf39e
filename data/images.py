"""The images of a run: files are decoded once into a cache, from which batches are read."""
import contextlib
import fcntl
import json
import os

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from utils.checkpoint import save_array, save_json, write_atomically
from utils.errors import UserError, explained, quoted
from utils.runtime import print_line, to_device

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")    # that are decoded; Pillow would run Ghostscript on an EPS file
FREE_SHARE = 0.25           # of the GPU's free memory that the images of a run may take
OF_DATA_SET = "replace it by the file of the original data set, or correct the lists of the data set"
AT_ONCE = 256               # images on their way to the cache or the GPU


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
            for start in range(0, len(images), AT_ONCE):        # the host never holds a second copy
                part = slice(start, start + AT_ONCE)
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


def open_banks(data, split, manifest, height, width, cache_dir="", device="cpu", cache="mmap",
               normalisation="imagenet", resize="lanczos"):
    """Open the images of a split from their cache; if that is missing or stale, say so and write it first.

    Args:
        data: `data.records.DataSet`; split: "train" or "test"; manifest: `data.manifest.data_manifest` of it.
        height, width: pixels.
        cache_dir: folder of the .npy files, "" for the data set's own.
        device, cache, normalisation: of `ImageBank`.
        resize: of `read_image`.
    Returns: Modality -> `ImageBank`.
    Raises: UserError: an image does not decode, all of them are constant, or the cache cannot be written or is not
        ours.
    """
    banks, folder = {}, data.cache_dir(cache_dir)
    for m, images in getattr(data, split).items():
        file, persons, paths, record = (folder / f"{split}_{m.value}_resized_{end}"
                                        for end in ("img.npy", "label.npy", "path.npy", "manifest.json"))
        described = {**manifest[split][m.value], "height": height, "width": width, "resize": resize}
        if not _is_current(file, record, described):
            count = len(images.paths)
            print_line(f"decoding {count:,} {split} {m.value} images once into {folder} (DATASET.CACHE_DIR), "
                       f"{3 * count * height * width / 1e9:,.2f} GB")
            if "range" in described:
                print_line(range_line(described, m))
            with _locked(record, file, persons, paths):
                if not _is_current(file, record, described):        # no other run has just done so
                    save_json(record, {"unfinished": True})     # the files are ours, and stale until it is written
                    # not read here: other codebases of the field know them by these names
                    save_array(persons, np.unique(images.persons, return_inverse=True)[1].astype(np.int64))
                    save_array(paths, np.array(images.paths))
                    _decode_all([data.root / path for path in images.paths], file, described)
                    save_json(record, {**described, "file": _stamp(file)})
        banks[m] = ImageBank(np.lib.format.open_memmap(file, mode="r"), device, images.paths, cache, normalisation,
                             images.cameras)
    return banks


def _is_current(file, record, described):
    """Tell whether a file was made from these very images at this size, as its record says, and not changed since."""
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return file.is_file() and known == {**described, "file": _stamp(file)}


def _stamp(file):
    return [file.stat().st_size, file.stat().st_mtime_ns]


@contextlib.contextmanager
def _locked(record, *files):
    """Let one run at a time write into the folder. Raises UserError: it may not, or another program wrote a file."""
    if not record.is_file() and (foreign := next((file for file in files if file.exists()), None)):
        raise UserError(f"{quoted(foreign)} is not from here (no {record.name} lies beside it) and is not replaced; "
                        "move it away, or set DATASET.CACHE_DIR (process.py: --cache_dir) to another folder")
    with explained(f"the image cache in {quoted(record.parent)} cannot be written",
                   "make the folder writable, or set DATASET.CACHE_DIR (process.py: --cache_dir) to another"):
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = open(record.parent / ".cache.lock", "a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _decode_all(paths, file, described):
    """Write the decoded images of many files into one. Args: described: what is to be known of them."""
    height, width, resize, grey_range = (described.get(key) for key in ("height", "width", "resize", "range"))

    def write(npy):
        np.lib.format.write_array_header_1_0(npy, {"descr": "|u1", "fortran_order": False,
                                                   "shape": (len(paths), height, width, 3)})
        show = False
        for start in tqdm(range(0, len(paths), AT_ONCE), "decoding images", disable=None):
            images = np.stack(in_parallel(lambda path: read_image(path, height, width, OF_DATA_SET, grey_range, resize),
                                          paths[start:start + AT_ONCE]))
            show |= bool((images != images[:, :1, :1]).any())
            npy.write(images)
        if not show:
            raise UserError(f"each of the {len(paths):,} images, such as {quoted(paths[0])}, has one colour "
                            "throughout; expected images that show something. Export them again"
                            + (", or correct DATASET.IR_RANGE" if grey_range else ""))

    write_atomically(file, write)


def file_stat(path, remedy=OF_DATA_SET):
    """Call os.stat on an image. Raises UserError: it is missing, a link that leads nowhere, or no file."""
    if not os.path.isfile(path):
        raise UserError(f"image {quoted(path)} is missing; {remedy}")
    return os.stat(path)


def in_parallel(function, items, description=""):
    """Call function(item) for all items on all cores: list. For work that releases the GIL.

    Args: description: of the progress bar, "" for none.
    """
    return thread_map(function, items, max_workers=os.cpu_count(), unit="image", desc=description, mininterval=1,
                      leave=False, disable=None if description and len(items) else True)


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
        with contextlib.suppress(Exception):        # many kinds on damaged EXIF data, which then say nothing
            ImageOps.exif_transpose(image, in_place=True)
        return image


def pixel_range(image):
    """Return the least and the greatest value of an image of Pillow: list of 2 numbers."""
    pixels = np.asarray(image)
    return [float(pixels.min()), float(pixels.max())]


def range_line(described, modality):
    """Say in a line how images of more than 8 bits become 8 bits. Args: described: holds "range"."""
    low, high = described["range"]
    return (f"{modality.value} images of more than 8 bits: {low:g} to {high:g} become grey levels 0 to 255; where a "
            "few odd pixels widen the range, set DATASET.IR_RANGE (process.py: --ir_range)")
