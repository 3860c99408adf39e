"""Images decoded once: resized to one size, uint8, in .npy files that are memory-mapped or copied to the GPU."""
import fcntl
import json
import os

import numpy as np

from data.images import ImageBank, in_parallel, read_image
from data.manifest import range_line
from utils.checkpoint import PARTIAL, file_digest, save_array, save_json
from utils.errors import UserError, quoted


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
