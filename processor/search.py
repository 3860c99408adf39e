"""Search one's own images: the nearest of a folder to a picture of the other modality."""
import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.images import ImageBank, decode_image, in_parallel, read_image
from data.manifest import file_stat
from model.checkpoint import model_from_checkpoint
from model.clip import weights_digest
from model.released import released_input_size
from processor.features import embed
from utils.checkpoint import load_checkpoint, released_state, write_atomically
from utils.errors import UserError

KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
AT_ONCE = 512       # decoded images held in memory
PICTURE = 112, 184  # width and height in pixels that a picture fits into


class Searcher:
    """A trained model and the size of its images.

    Args: checkpoint: a file of train_prepare.py or train_clip.py, or a released one; device: torch device.
    Raises: UserError: as `load_checkpoint` and `model_from_checkpoint`.
    """

    def __init__(self, checkpoint, device):
        content = load_checkpoint(checkpoint)
        released, self.device = released_state(content), device
        size = content.get("config", {}).get("INPUT", {})
        self.size = ((released_input_size(released) if released else None)
                     or (size.get("HEIGHT", 288), size.get("WIDTH", 144)))
        model = model_from_checkpoint(content, checkpoint, *self.size)
        self.digest = weights_digest(model)
        self.model = model.to(device, memory_format=torch.channels_last)

    def embed_files(self, paths, modality, batch_size=64):
        """Features (N, D) float32 of image files, L2-normalised. Raises UserError: a file is missing or broken."""
        parts = []
        with tqdm(total=len(paths), desc=f"embedding {modality.value} images", unit="image", disable=None) as bar:
            for start in range(0, len(paths), AT_ONCE):
                some = paths[start:start + AT_ONCE]
                images = np.stack(in_parallel(lambda path: read_image(path, *self.size), some, "decoding"))
                parts.append(embed(self.model, ImageBank(images, self.device), modality, batch_size=batch_size).cpu())
                bar.update(len(some))
        return torch.cat(parts).numpy()

    def gallery(self, folder, modality, cache_dir):
        """The images in a folder and below: their paths, and features (N, D) that are kept in cache_dir for next time.

        Returns: paths, features, whether they came from the cache.
        Raises: UserError: the folder is not there or holds no image, or an image is broken.
        """
        paths = image_files(folder)
        digest = hashlib.sha256(f"{self.digest} {modality.value} {self.size}".encode())
        for path in paths:
            stat = file_stat(path)
            digest.update(f"\n{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
        cache = Path(cache_dir) / f"features-{digest.hexdigest()[:16]}.npy"
        if cache.is_file():
            try:
                features = np.load(cache, allow_pickle=False)
                if len(features) == len(paths):
                    return paths, features, True
            except (OSError, ValueError, EOFError):
                pass        # a broken cache is made again
        features = self.embed_files(paths, modality)
        write_atomically(cache, lambda file: np.save(file, features, allow_pickle=False))
        return paths, features, False


def image_files(folder):
    """The image files in a folder and below, sorted. Raises UserError: the folder is not there or holds none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"gallery {folder} is no folder; expected a folder of images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    if not paths:
        raise UserError(f"gallery {folder} holds no image; expected files ending in {', '.join(KINDS)}")
    return paths


def nearest(query, gallery, count):
    """The nearest gallery rows to each query by cosine distance.

    Args: query: (Q, D), gallery: (G, D), both L2-normalised. Returns: (Q, n) positions and (Q, n) distances,
        n = min(count, G).
    """
    distance = 1 - query @ gallery.T
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(distance, order, axis=1)


def picture(path):
    """A small JPEG of an image file, as base64 text. Raises UserError: it is missing or does not decode."""
    image, buffer = decode_image(path)[0], io.BytesIO()
    image.thumbnail(PICTURE)
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
