"""Pseudo labels: made by clustering features, saved and read as .npy files."""
import hashlib
from pathlib import Path

import numpy as np

from data.manifest import MANIFEST, manifest_differences
from utils.checkpoint import load_array, save_array, save_json
from utils.errors import UserError
from utils.modality import Modality
from utils.structure import Misfit, finite_json

MANIFEST_NAME = "manifest.json"
FILE_NAMES = {m: f"train_{m.value}_resized_pseudo_label.npy" for m in Modality}


def save_pseudo_labels(folder, labels, manifest, unified=False):
    """Write both modalities' labels (Modality -> (N,) int64) under the names other codebases use, without gaps.

    Args: manifest: `data.manifest.data_manifest` of the images they belong to, saved beside them.
    """
    for modality, array in labels.items():
        save_array(Path(folder) / FILE_NAMES[modality], _without_gaps(array.astype(np.int64)))
    save_json(Path(folder) / MANIFEST_NAME, manifest)


def find_pseudo_labels(label_dir, output_dir, data_label_dirs):
    """Find the folder that train_clip.py takes its labels from: label_dir if set, else the run's, else the data set's.

    Raises: UserError: none of them holds both files.
    """
    folders = [Path(label_dir)] if label_dir else [Path(output_dir) / "pseudo_labels", *data_label_dirs]
    for folder in folders:
        if all((folder / name).is_file() for name in FILE_NAMES.values()):
            return folder
    raise UserError(f"pseudo labels are missing: {' and '.join(FILE_NAMES.values())} were looked for in "
                    f"{' and '.join(map(str, folders))}. Make them with train_prepare.py and the same configuration, "
                    "or set PSEUDO_LABEL_DIR")


def load_pseudo_labels(folder, sizes, manifest):
    """Read both modalities' labels: Modality -> (N,) int64; and whether a manifest shows that they are of these images.

    Args: sizes: Modality -> number of training images; manifest: `data.manifest.data_manifest` of the images.
    Raises: UserError: a file is no array of integers from -1 on, has another length, or holds outliers alone, or the
        labels were made on other images. Labels without a manifest, as others share them, are accepted.
    """
    labels, known = {}, _made_on_these_images(folder, manifest)
    for modality, name in FILE_NAMES.items():
        path = Path(folder) / name
        try:
            array = load_array(path)
        except ValueError as error:
            raise UserError(f"pseudo labels {path} cannot be read ({error}); expected a .npy array of integers. Make "
                            "them again with train_prepare.py")
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or (array.size and array.min() < -1):
            raise UserError(f"pseudo labels {path} hold {array.dtype} of shape {array.shape}; expected integers (N,) "
                            "from -1 on. Make them again with train_prepare.py")
        if len(array) != sizes[modality]:
            raise UserError(f"pseudo labels {path} hold {len(array)} labels, but the data set has {sizes[modality]} "
                            f"{modality.value} training images; make them with train_prepare.py on this data set, or "
                            "set PSEUDO_LABEL_DIR")
        if array.size and array.max() >= np.iinfo(np.int64).max:
            raise UserError(f"pseudo labels {path} hold {array.max()}; expected cluster numbers. Make them again with "
                            "train_prepare.py")
        if (array < 0).all():
            raise UserError(f"pseudo labels {path} are all -1 (outliers); expected some clusters. Make them again with "
                            "train_prepare.py --fresh and a larger CLUSTER.EPS")
        labels[modality] = _without_gaps(array.astype(np.int64))
    return labels, known


def _made_on_these_images(folder, manifest):
    """Tell whether a manifest beside the labels names these training images. Raises UserError: it names others."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        return False
    try:
        stored = finite_json(path.read_text(encoding="utf-8"))
        MANIFEST(stored, "")
    except (OSError, ValueError, Misfit) as error:
        raise UserError(f"{path} is no manifest of a data set ({' '.join(str(error).split())[:160]}); expected the "
                        "file that train_prepare.py writes beside its labels. Make them again, or remove the file "
                        "if the labels are not its own")
    differences = manifest_differences(manifest, stored, splits=("train",))
    if differences:
        raise UserError(f"pseudo labels in {folder} were made on other images: this data set has "
                        f"{'; '.join(differences)}. Make them with train_prepare.py (--fresh in that folder) on this "
                        "data set, or set PSEUDO_LABEL_DIR")
    return True


def labels_digest(labels):
    """Hash both modalities' labels (Modality -> (N,) int64) by SHA-256, to tell whether they changed."""
    return hashlib.sha256(b"".join(labels[m].tobytes() for m in Modality)).hexdigest()


def _without_gaps(labels):
    """Renumber clusters 0, 1, 2 ... in the same order; -1 stays."""
    kept = labels >= 0
    renumbered = np.full_like(labels, -1)
    renumbered[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return renumbered
