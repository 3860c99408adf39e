"""Files of pseudo labels: a .npy file per modality, under the names other codebases use, and a manifest beside them."""
import hashlib
import json
from pathlib import Path

import numpy as np

from data.manifest import manifest_differences
from utils.checkpoint import load_array, save_array, save_json
from utils.errors import UserError, explained, quoted
from utils.modality import Modality

MANIFEST_NAME = "manifest.json"
FILE_NAMES = {m: f"train_{m.value}_resized_pseudo_label.npy" for m in Modality}
AGAIN = "Make them again with train_prepare.py"


def save_pseudo_labels(folder, labels, manifest, unified=False, made=None):
    """Write both modalities' labels, renumbered 0, 1, 2 ... without gaps, and what they are of.

    Args:
        folder: where the files go.
        labels: Modality -> (N,) integers, -1 is an outlier.
        manifest: `data.manifest.data_manifest` of the images they belong to, saved beside them with their digest.
        unified: both modalities share one range, in which a number is the same person: they are renumbered together.
        made: how, {"epoch": the last one, "config": the settings of the run}.
    """
    labels = renumbered(labels, unified)
    for modality, array in labels.items():
        save_array(Path(folder) / FILE_NAMES[modality], array)
    save_json(Path(folder) / MANIFEST_NAME, {**manifest, "unified": unified, "labels": labels_digest(labels),
                                             "made": made})


def find_pseudo_labels(label_dir, output_dir, data_label_dirs):
    """Find the folder that train_clip.py takes its labels from: label_dir if set, else the run's, else the data set's.

    Raises: UserError: none of them holds both files, or the run's train_prepare.py has not made its own yet.
    """
    folders = [Path(label_dir)] if label_dir else [Path(output_dir) / "pseudo_labels", *data_label_dirs]
    for folder in folders:
        if all((folder / name).is_file() for name in FILE_NAMES.values()):
            return folder
        if folder.parent == Path(output_dir) and any(folder.parent.glob("prepare_*.pth")):
            raise UserError(f"train_prepare.py has not finished in {quoted(output_dir)}: its pseudo labels are not "
                            "there yet. Run it to its end with the same settings, or set PSEUDO_LABEL_DIR")
    raise UserError(f"pseudo labels are missing: {' and '.join(FILE_NAMES.values())} were looked for in "
                    f"{' and '.join(map(str, folders))}. Make them with train_prepare.py and the same configuration, "
                    "or set PSEUDO_LABEL_DIR")


def load_pseudo_labels(folder, sizes, manifest):
    """Read both modalities' labels.

    Labels with a manifest of ours keep the numbers they were saved with. Others, as people share them, are accepted
    if their lengths are right, and each modality is renumbered without gaps.

    Args: sizes: Modality -> number of training images; manifest: `data.manifest.data_manifest` of the images.
    Returns: Modality -> (N,) int64; and how they were made, as `save_pseudo_labels` was told; None where no manifest
        shows that they are of these images, {} where it does not say more.
    Raises: UserError: a file is no array of integers from -1 on, has another length, or holds outliers alone; the
        labels were made on other images, or are not those that the manifest was written for.
    """
    path = Path(folder) / MANIFEST_NAME
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if stored and (differences := manifest_differences(manifest, stored, splits=("train",))):
        raise UserError(f"pseudo labels in {folder} were made on other images: this data set has "
                        f"{'; '.join(differences)}. Make them with train_prepare.py (--fresh in that folder) on this "
                        "data set, or set PSEUDO_LABEL_DIR")
    labels = {m: _read(Path(folder) / name, m, sizes[m]) for m, name in FILE_NAMES.items()}
    if stored is None:
        return renumbered(labels), None
    if stored.get("labels", labels_digest(labels)) != labels_digest(labels):
        raise UserError(f"pseudo labels in {folder} are not those that the {MANIFEST_NAME} beside them was written "
                        f"for. {AGAIN}, or remove {MANIFEST_NAME} if they belong to this data set")
    return labels, (stored.get("made") or {}) if "labels" in stored else None


def origin(made):
    """Say how labels were made. Args: made: of `load_pseudo_labels`."""
    if made is None:
        return "as many as training images; no manifest says on which images they were made"
    if not made:
        return "made on these training images; their manifest does not say how"
    config = made["config"]
    return (f"made on these training images by {config['OUTPUT_DIR']}: {config['METHOD']['NAME']}, seed "
            f"{config['SEED']}, epoch {made['epoch']}")


def labels_digest(labels):
    """Hash both modalities' labels (Modality -> (N,) int64) by SHA-256, to tell whether they changed."""
    return hashlib.sha256(b"".join(labels[m].tobytes() for m in Modality)).hexdigest()


def _read(path, modality, size):
    """Read one modality's labels: (size,) int64."""
    with explained(f"pseudo labels {path} cannot be read", f"expected a .npy array of integers. {AGAIN}"):
        array = load_array(path)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min(initial=0) < -1:
        raise UserError(f"pseudo labels {path} hold {array.dtype} of shape {array.shape}; expected integers (N,) from "
                        f"-1 on. {AGAIN}")
    if len(array) != size:
        raise UserError(f"pseudo labels {path} hold {len(array)} labels, but the data set has {size} {modality.value} "
                        "training images; make them with train_prepare.py on this data set, or set PSEUDO_LABEL_DIR")
    if (array < 0).all():
        raise UserError(f"pseudo labels {path} are all -1 (outliers); expected some clusters. {AGAIN} --fresh and a "
                        "larger CLUSTER.EPS")
    return array.astype(np.int64)


def renumbered(labels, together=False):
    """Renumber clusters 0, 1, 2 ... in the same order, -1 stays. Args: together: by one mapping for both modalities."""
    found = {}
    for m, array in labels.items():
        array = array.astype(np.int64)
        used = np.concatenate(list(labels.values())) if together else array
        found[m] = np.where(array < 0, -1, np.searchsorted(np.unique(used[used >= 0]), array))
    return found
