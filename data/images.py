"""The images of a run: files are decoded once into a cache, from which batches are read."""
import fcntl
import json
import os

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from tqdm.contrib.concurrent import thread_map

from utils.checkpoint import PARTIAL, file_digest, save_array, save_json
from utils.errors import UserError, explained, quoted
from utils.modality import Modality
from utils.runtime import to_device

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")    # that are decoded; Pillow would run Ghostscript on an EPS file
FREE_SHARE = 0.25           # of the GPU's free memory that the images of a run may take
OF_DATA_SET = "replace it by the file of the original data set, or correct the lists of the data set"
READ_AT_ONCE = 256          # images on their way to the GPU
FEW_LEVELS = 32     # grey levels of a typical image of more than 8 bits, below which a warning is due


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


def open_banks(data, split, manifest, height, width, cache_dir="", device="cpu", cache="mmap",
               normalisation="imagenet", announce=None, resize="lanczos"):
    """Open the images of a split from their cache, which is written first if it is missing or stale.

    Args:
        data: `data.records.DataSet`; split: "train" or "test"; manifest: `data.manifest.data_manifest` of it.
        height, width: pixels.
        cache_dir: folder of the .npy files, "" for the data set's own.
        device, cache, normalisation: of `ImageBank`.
        announce: a function that is told in a line what is decoded, before it is.
        resize: of `data.images.read_image`.
    Returns: Modality -> `ImageBank`.
    Raises: UserError: an image does not decode, all of them are constant, or the cache cannot be written.
    """
    banks = {}
    for m, images in getattr(data, split).items():
        files = CacheFiles(data.cache_dir(cache_dir), split, m.value)
        described = {**manifest[split][m.value], "height": height, "width": width, "orientation": "EXIF",
                     **({} if resize == "lanczos" else {"resize": resize})}
        if not files.is_current(described):
            if announce:
                announce(f"decoding {len(images):,} {split} {m.value} images once into {quoted(files.images)}, "
                         f"{3 * len(images) * height * width / 1e9:,.2f} GB")
                if "range" in described:
                    announce(range_line(described, m))
            files.write(images, data.root, described)
        array = np.lib.format.open_memmap(files.images, mode="r")
        banks[m] = ImageBank(array, device, images.paths, cache, normalisation, images.cameras)
    return banks


class CacheFiles:
    """The files of one cached image set, with the names other codebases of the field use."""

    def __init__(self, folder, split, modality):
        stem = f"{split}_{modality}_resized"
        self.folder = folder
        self.images = folder / f"{stem}_img.npy"         # (N, H, W, 3) uint8
        self.labels = folder / f"{stem}_label.npy"       # (N,) int64, persons counted from 0
        self.paths = folder / f"{stem}_path.npy"         # (N,) str, relative to the root
        self.manifest = folder / f"{stem}_manifest.json"

    def is_current(self, described):
        """Tell whether the files were made from these very images at this size, and are as they were written."""
        known = self._known()
        return known == {**described, "arrays": known.get("arrays")} and not self.altered()

    def altered(self, digests=False):
        """Find a file that is missing or not as it was written: its path, or None.

        A file of the size and time that the manifest holds is taken for the same; another time, as a copy has, is
        settled by its digest. Args: digests: compare the digests of all files.
        """
        for name, (size, time, digest) in self._known().get("arrays", {}).items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size or (
                    (digests or path.stat().st_mtime_ns != time) and file_digest(path) != digest):
                return path
        return None

    def _known(self):
        return json.loads(self.manifest.read_text(encoding="utf-8")) if self.manifest.is_file() else {}

    def write(self, image_set, root, described):
        """Decode all images into new files, unless another run has just done so.

        Raises: UserError: the folder cannot be written, or holds files of these names that another program wrote.
        """
        foreign = [path for path in (self.images, self.labels, self.paths) if path.exists()]
        if foreign and not self.manifest.is_file():
            raise UserError(f"{quoted(foreign[0])} is not from here (no {self.manifest.name} lies beside it) and is "
                            "not replaced; move it away, or set DATASET.CACHE_DIR (process.py: --cache_dir) to another "
                            "folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / ".cache.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.is_current(described):
                    self._write(image_set, root, described)
        except OSError as error:
            raise UserError(f"the image cache in {self.folder} cannot be written ({error.strerror or error}); make the "
                            "folder writable and free space, or set DATASET.CACHE_DIR to another folder")

    def _write(self, image_set, root, described):
        save_json(self.manifest, {"unfinished": True})       # the files are ours, and stale until it is written again
        height, width, partial = described["height"], described["width"], self.images.with_suffix(PARTIAL)
        try:
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8,
                                               shape=(len(image_set), height, width, 3))
            if hasattr(os, "posix_fallocate"):
                with open(partial, "r+b") as file:      # a full disk is an error here, and a crash in mapped memory
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)

            def decode(position):
                """Fill in an image; tell whether it shows more than one colour."""
                images[position] = read_image(root / image_set.paths[position], height, width,
                                              grey_range=described.get("range"),
                                              resize=described.get("resize", "lanczos"))
                return (images[position] != images[position, 0, 0]).any()

            if not any(in_parallel(decode, range(len(image_set)), f"decoding {image_set.modality.value} images")):
                raise UserError(f"every one of the {len(image_set):,} {image_set.modality.value} images in {root} has "
                                "one colour throughout; expected images that show something. Export them again"
                                + (", or correct DATASET.IR_RANGE" if "range" in described else ""))
            images.flush()
            os.replace(partial, self.images)
        finally:
            partial.unlink(missing_ok=True)
        save_array(self.labels, np.unique(image_set.persons, return_inverse=True)[1].astype(np.int64))
        save_array(self.paths, np.array(image_set.paths))
        arrays = {path.name: [path.stat().st_size, path.stat().st_mtime_ns, file_digest(path)]
                  for path in (self.images, self.labels, self.paths)}
        save_json(self.manifest, {**described, "arrays": arrays})


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


def grey_range(values, modality, ir_range=()):
    """Choose the one range by which all images of a modality are brought to 8 bits: {"range", "typical"}.

    Args: values: `data.images.pixel_range` of each image, or None; ir_range: as `data_manifest`.
    Returns: "range": the least and the greatest value in all images of more than 8 bits, or ir_range; "typical": the
        medians of their 1st and 99th percentiles; {} where no image has more than 8 bits.
    Raises: UserError: all values are the same.
    """
    deep = np.array([value for value in values if value and len(value) == 4])
    if not len(deep):
        return {}
    low, high = ir_range if ir_range and modality is Modality.IR else (deep[:, 0].min(), deep[:, 1].max())
    if low == high:
        raise UserError(f"all pixels of the {modality.value} images are {low:g}; expected images that show something. "
                        "Export them again")
    return {"range": [float(low), float(high)], "typical": np.median(deep[:, 2:], axis=0).tolist()}


def stored_range(content, modality):
    """Return the "range" of training images of a modality in a checkpoint's manifest: (low, high), None without one."""
    described = content.get("manifest", {"train": {}})["train"].get(modality.value, {})
    return tuple(described["range"]) if "range" in described else None


def range_line(described, modality):
    """Say in a line how images of more than 8 bits become 8 bits. Args: described: holds what `grey_range` returns."""
    (low, high), typical = described["range"], described["typical"]
    least, most = np.clip(typical, low, high)
    levels = round(255 * (most - least) / (high - low)) + 1
    line = (f"{modality.value} images of more than 8 bits: {low:g} to {high:g} become grey levels 0 to 255; a typical "
            f"image spans {typical[0]:g} to {typical[1]:g}, {levels} of them")
    return line if levels >= FEW_LEVELS else (
        f"warning: {line}; where a few odd pixels widen the range, set DATASET.IR_RANGE (process.py: --ir_range)")
