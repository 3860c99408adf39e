"""Image files decoded once: resized to one size, uint8, in .npy files that are memory-mapped or copied to the GPU."""
import fcntl
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from data.manifest import file_hashes, hash_of_lines, in_parallel
from utils.checkpoint import open_lock, save_array, save_json
from utils.errors import UserError, explained, quoted
from utils.runtime import to_device

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")    # that are decoded; Pillow would run Ghostscript on an EPS file
MAX_PIXELS = 50_000_000     # of one image file: a few kilobytes can claim to be gigabytes
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


def open_bank(image_set, root, cache_dir, split, height, width, device="cpu", cache="mmap", normalisation="imagenet",
              announce=None):
    """Open the `ImageBank` of an image set from its cache; the cache is written first if it is missing or stale.

    Args:
        image_set: `data.records.ImageSet`.
        root: folder its paths start from.
        cache_dir: folder of the .npy files.
        split: "train" or "test", part of their names.
        height, width: pixels.
        device, cache, normalisation: of `ImageBank`.
        announce: a function that is told in a line what is decoded, before it is.
    Raises:
        UserError: an image is missing or does not decode, the cache cannot be written, or the images are an array of
            another size.
    """
    shape = (len(image_set), height, width, 3)
    if image_set.array:
        images = np.load(image_set.array, mmap_mode="r", allow_pickle=False)
        if images.shape != shape:
            raise UserError(f"{image_set.array} holds images of {images.shape[1]} x {images.shape[2]} pixels, and the "
                            f"folders they came from are not there; expected INPUT.HEIGHT {height} and INPUT.WIDTH "
                            f"{width}. Set them to {images.shape[1]} and {images.shape[2]}")
        return ImageBank(images, device, image_set.paths, cache, normalisation, image_set.cameras)
    files = CacheFiles(Path(cache_dir), split, image_set.modality.value)
    contents = zip(image_set.paths, file_hashes(image_set, root, split, files.folder))
    manifest = {"images": len(image_set), "height": height, "width": width, "orientation": "EXIF",
                "sha256": hash_of_lines(f"{path}\0{content}" for path, (_, content) in contents)}
    if not files.is_current(manifest, shape):
        if announce:
            announce(f"decoding {len(image_set):,} {split} {image_set.modality.value} images once into "
                     f"{quoted(files.images)}, {math.prod(shape) / 1e9:,.2f} GB")
        files.write(image_set, root, manifest, height, width)
    return ImageBank(np.load(files.images, mmap_mode="r"), device, image_set.paths, cache, normalisation,
                     image_set.cameras)


class CacheFiles:
    """The files of one cached image set, with the names other codebases of the field use."""

    def __init__(self, folder, split, modality):
        stem = f"{split}_{modality}_resized"
        self.folder = folder
        self.images = folder / f"{stem}_img.npy"         # (N, H, W, 3) uint8
        self.labels = folder / f"{stem}_label.npy"       # (N,) int64, persons counted from 0
        self.paths = folder / f"{stem}_path.npy"         # (N,) str, relative to the root
        self.manifest = folder / f"{stem}_manifest.json"

    def is_current(self, manifest, shape):
        """Tell whether the files were made from these very images at this size."""
        if self._known_manifest() != manifest or not all(p.is_file() for p in (self.images, self.labels, self.paths)):
            return False
        try:
            images = np.load(self.images, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):     # cut off
            return False
        return images.shape == shape and images.dtype == np.uint8

    def write(self, image_set, root, manifest, height, width):
        """Decode all images into new files, unless another run has just done so.

        Raises: UserError: the folder cannot be written, or holds files of these names that another program wrote.
        """
        foreign = next((path for path in (self.images, self.labels, self.paths) if os.path.lexists(path)), None)
        if foreign and self._known_manifest() is None:
            raise UserError(f"{quoted(foreign)} is not from here (no {self.manifest.name} of ours lies beside it) "
                            "and is not replaced; move it away, or set DATASET.CACHE_DIR (process.py: --cache_dir) to "
                            "another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open_lock(self.folder / ".cache.lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.is_current(manifest, (len(image_set), height, width, 3)):
                    self._write(image_set, root, manifest, height, width)
        except OSError as error:
            raise UserError(f"the image cache in {self.folder} cannot be written ({error.strerror or error}); make the "
                            "folder writable and free space, or set DATASET.CACHE_DIR to another folder")

    def _known_manifest(self):
        """Read the manifest beside the arrays; None if there is none, or none that this project writes."""
        try:
            content = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_ours = isinstance(content, dict) and ("unfinished" in content or {"images", "sha256"} <= content.keys())
        return content if is_ours else None

    def _write(self, image_set, root, manifest, height, width):
        save_json(self.manifest, {"unfinished": True})       # the files are ours, and stale until it is written again
        partial = self.images.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        try:
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8,
                                               shape=(len(image_set), height, width, 3))
            if hasattr(os, "posix_fallocate"):
                with open(partial, "r+b") as file:      # a full disk is an error here, and a crash in mapped memory
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)

            def decode(position):
                images[position] = read_image(Path(root) / image_set.paths[position], height, width)

            in_parallel(decode, range(len(image_set)), f"decoding {image_set.modality.value} images")
            images.flush()
            os.replace(partial, self.images)
        finally:
            partial.unlink(missing_ok=True)
        save_array(self.labels, np.unique(image_set.persons, return_inverse=True)[1].astype(np.int64))
        save_array(self.paths, np.array(image_set.paths))
        save_json(self.manifest, manifest)


def read_image(path, height, width, remedy=OF_DATA_SET):
    """Decode one image file, convert it to RGB and resize it (Lanczos): (height, width, 3) uint8.

    Args: remedy: as `decode_image`. Raises: UserError: the file is missing or does not decode.
    """
    return np.asarray(decode_image(path, remedy)[0].resize((width, height), Image.LANCZOS))


def decode_image(path, remedy=OF_DATA_SET):
    """Decode one image file, upright, into an RGB image of Pillow; and the mode it was stored in, such as "L".

    Args: remedy: what to do about a file that is missing or does not decode.
    Raises: UserError: the file is missing, of another format than FORMATS, or does not decode.
    """
    if not os.path.exists(path):
        raise UserError(f"image {quoted(path)} is missing; {remedy}")
    with explained(f"image {quoted(path)} does not decode", remedy), Image.open(path, formats=FORMATS) as image:
        mode = image.mode
        if image.width * image.height > MAX_PIXELS:     # before anything is decoded
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        image.load()
        image = _upright(image)
        if mode.startswith("I"):      # 16 bits a pixel; convert() would clip instead of scale
            image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
        return image.convert("RGB"), mode


def _upright(image):
    """Turn an image as its EXIF orientation says; damaged EXIF data say nothing."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:       # Pillow raises many kinds on damaged EXIF data
        return image
    return ImageOps.exif_transpose(image) if turned else image
