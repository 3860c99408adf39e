"""Decoded images, held once: resized to one size, uint8, in .npy files that are memory-mapped or read when opened."""
import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.manifest import file_stat
from utils.errors import UserError

MAX_PIXELS = 50_000_000     # of one image file: a few kilobytes can claim to be gigabytes
FREE_SHARE = 0.25           # of the GPU's free memory, else the host's, that the images of a run may take by themselves
READ_AT_ONCE = 256          # images on their way into memory


class ImageBank:
    """The resized images of one modality and split.

    Args: images: (N, H, W, 3) uint8 array, memory-mapped or not; device: where batches are wanted; paths: (N,) names
        for messages, or none; cache: "mmap" takes batches from the array as it is, "memory" and "device" from a copy
        in host memory, pinned if the device is a GPU, or on the device.
    """

    def __init__(self, images, device="cpu", paths=(), cache="mmap"):
        self.images = images
        self.device = torch.device(device)
        self.paths = paths
        self._copy = None if cache == "mmap" else _copied(images, self.device if cache == "device" else "cpu",
                                                          cache == "memory" and self.device.type == "cuda")

    def __len__(self):
        return len(self.images)

    def names(self, indices):
        """Return the names of images for messages; their positions where names are unknown."""
        return [self.paths[i] if self.paths else f"number {i}" for i in indices]

    def batch(self, indices):
        """Images (B, 3, H, W) uint8 on the device, channels last in memory."""
        positions = np.ascontiguousarray(indices)
        if self._copy is None:
            images = torch.from_numpy(np.ascontiguousarray(self.images[positions])).to(self.device, non_blocking=True)
        elif not self._copy.is_pinned():
            images = self._copy.index_select(0, torch.from_numpy(positions).to(self._copy.device))
        else:       # pinned: each image goes to the GPU by itself while the host goes on
            images = torch.empty((len(positions), *self._copy.shape[1:]), dtype=torch.uint8, device=self.device)
            for image, position in zip(images, positions):
                image.copy_(self._copy[position], non_blocking=True)
        return images.permute(0, 3, 1, 2)


def _copied(images, device, pinned):
    """An array (N, H, W, 3), perhaps memory-mapped, as a tensor on a device, pinned in host memory or not."""
    copy = torch.empty(images.shape, dtype=torch.uint8, device=device, pin_memory=pinned)
    for start in range(0, len(images), READ_AT_ONCE):       # the host never holds a second copy
        copy[start:start + READ_AT_ONCE] = torch.from_numpy(np.array(images[start:start + READ_AT_ONCE]))
    return copy


def pick_cache(name, size, device):
    """Where images of `size` bytes are held, "memory", "mmap" or "device": name itself, unless it is "auto".

    auto: on a GPU if they fit into FREE_SHARE of its free memory, else in host memory if they fit into that share of
    what is available there, else memory-mapped. On the CPU memory-mapped: the page cache holds them once already.
    """
    if name != "auto":
        return name
    device = torch.device(device)
    if device.type != "cuda":
        return "mmap"
    if size <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if size <= FREE_SHARE * _available_memory() else "mmap"


def _available_memory():
    """Bytes of host memory that can be had without swapping, by the kernel's estimate; 0 where it gives none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def open_bank(image_set, root, cache_dir, split, height, width, device="cpu", cache="mmap"):
    """The `ImageBank` of an image set, from its cache; the cache is written first if it is missing or stale.

    Args:
        image_set: `data.records.ImageSet`; root: folder its paths start from; cache_dir: folder of the .npy files;
        split: "train" or "test", part of their names; height, width: pixels; device, cache: of `ImageBank`.
    Raises:
        UserError: an image is missing or does not decode, the cache cannot be written, or the images are an array of
            another size.
    """
    shape = (len(image_set), height, width, 3)
    if image_set.array:
        images = np.load(image_set.array, mmap_mode="r")
        if images.shape != shape:
            raise UserError(f"{image_set.array} holds images of {images.shape[1]} x {images.shape[2]} pixels, and the "
                            f"folders they came from are not there; expected INPUT.HEIGHT {height} and INPUT.WIDTH "
                            f"{width}. Set them to {images.shape[1]} and {images.shape[2]}")
        return ImageBank(images, device, image_set.paths, cache)
    files = CacheFiles(Path(cache_dir), split, image_set.modality.value)
    manifest = _cache_manifest(image_set, root, height, width)
    if not files.is_current(manifest, shape):
        files.write(image_set, root, manifest, height, width)
    return ImageBank(np.load(files.images, mmap_mode="r"), device, image_set.paths, cache)


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
        """Whether the files were made from these very images at this size."""
        if not all(p.is_file() for p in (self.images, self.labels, self.paths, self.manifest)):
            return False
        try:
            return (json.loads(self.manifest.read_text()) == manifest
                    and np.load(self.images, mmap_mode="r").shape == shape)
        except (ValueError, OSError):
            return False

    def write(self, image_set, root, manifest, height, width):
        """Decode all images into new files, unless another run has just done so.

        The manifest is written last, so a broken run is seen as stale.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / ".cache.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.is_current(manifest, (len(image_set), height, width, 3)):
                    self._write(image_set, root, manifest, height, width)
        except OSError as error:
            raise UserError(f"the image cache in {self.folder} cannot be written ({error.strerror or error}); make the "
                            "folder writable and free space, or set DATASET.CACHE_DIR to another folder")

    def _write(self, image_set, root, manifest, height, width):
        self.manifest.unlink(missing_ok=True)
        partial = self.images.with_suffix(".partial")
        try:
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8,
                                               shape=(len(image_set), height, width, 3))
            if hasattr(os, "posix_fallocate"):
                with open(partial, "r+b") as file:      # a full disk is an error here, and a crash in mapped memory
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            _decode_all(image_set, root, images)
            images.flush()
            os.replace(partial, self.images)
        finally:
            partial.unlink(missing_ok=True)
        np.save(self.labels, np.unique(image_set.persons, return_inverse=True)[1].astype(np.int64))
        np.save(self.paths, np.array(image_set.paths))
        self.manifest.write_text(json.dumps(manifest))


def _cache_manifest(image_set, root, height, width):
    """What the cache was made from: a hash over names, sizes and times of all files."""
    digest = hashlib.sha256()
    for path in image_set.paths:
        stat = file_stat(Path(root) / path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {"images": len(image_set), "height": height, "width": width, "sha256": digest.hexdigest()}


def in_parallel(function, items, description):
    """[function(item) for item in items] on all cores, with a progress bar; for work that releases the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), unit="image", desc=description, mininterval=1,
                         leave=False, disable=None))


def _decode_all(image_set, root, out):
    height, width = out.shape[1:3]

    def decode(position):
        out[position] = read_image(Path(root) / image_set.paths[position], height, width)

    in_parallel(decode, range(len(image_set)), f"decoding {image_set.modality.value} images")


def read_image(path, height, width):
    """One image file, converted to RGB and resized (Lanczos): (height, width, 3) uint8.

    Raises: UserError: the file is missing or does not decode.
    """
    return np.asarray(decode_image(path)[0].resize((width, height), Image.LANCZOS))


def decode_image(path):
    """One image file, as an RGB image of Pillow; and the mode it was stored in, such as "L".

    Raises: UserError: the file is missing or does not decode.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if image.width * image.height > MAX_PIXELS:     # before anything is decoded
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            if mode.startswith("I"):      # 16 bits a pixel; convert() would clip instead of scale
                image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
            return image.convert("RGB"), mode
    except FileNotFoundError:
        raise UserError(f"image {path} is missing; restore it or correct the lists of the data set")
    except Exception as error:     # Pillow raises many kinds on damaged files
        raise UserError(f"image {path} does not decode ({error}); replace it by the file of the original data set")
