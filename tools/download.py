"""Download what the authors of CCLNet released: checkpoints and pseudo labels, checked before they count as there.

    python tools/download.py NAME [--root DATASET_ROOT] [--output_dir runs/released]
    python tools/download.py --list

An interrupted download resumes where it stopped when the same command is run again.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402

FILE_URL = "https://drive.google.com/uc?id={id}"                   # for programs
FILE_PAGE = "https://drive.google.com/file/d/{id}/view"            # for people
FOLDER_PAGE = "https://drive.google.com/drive/folders/{id}"
CHECKPOINT_NAME = "model_best.pth"
LABEL_NAMES = {m: f"train_{m}_resized_pseudo_label.npy" for m in ("rgb", "ir")}
RETRIES = 3                  # of an interrupted transfer, before the user is told
TIMEOUT = 60                 # seconds without a byte


@dataclass(frozen=True)
class Asset:
    """A released checkpoint, or a released folder of pseudo labels."""

    id: str
    what: str
    root: str = ""                  # folder of the data set that pseudo labels belong to
    images: dict | None = None      # name of each file of pseudo labels -> number of labels

    @property
    def page(self):
        """Return the address for a browser."""
        return (FOLDER_PAGE if self.images else FILE_PAGE).format(id=self.id)


SYSU_LABELS = {LABEL_NAMES["rgb"]: 22258, LABEL_NAMES["ir"]: 11909}
REGDB_LABELS = {LABEL_NAMES["rgb"]: 2060, LABEL_NAMES["ir"]: 2060}
ASSETS = {
    "sysu-prepare": Asset("1mK41qVbKmWHQLgfSPijk0RYDrWVJdOsG", "SYSU-MM01, train_prepare"),
    "sysu-clip-2023-11": Asset("1-qniQHrgmVYxERh62hacV0Kt07y_sZuU", "SYSU-MM01, train_clip, 2023-11"),
    "sysu-clip-2024-03": Asset("1ga6ZCLFDRUbebsisvRXkqR2dc1kV-gH-", "SYSU-MM01, train_clip, 2024-03"),
    "regdb-clip-trial1": Asset("1F8Hh-6J4Va0YI8uA7HWpi-oLC2CW7-MS", "RegDB trial 1, train_clip"),
    "sysu-labels": Asset("1Ysl8tHZ1ZmKlFXnuJHWBZJ9Giel0Q6nZ", "SYSU-MM01, pseudo labels", "dataset/SYSU-MM01",
                         SYSU_LABELS),
    "regdb-labels": Asset("1porzH8N5rVPB-7R2xo3AEdD3whly0w8Z", "RegDB, pseudo labels", "dataset/RegDB", REGDB_LABELS),
}


def parse_arguments(arguments=None):
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", help=", ".join(ASSETS))
    parser.add_argument("--root", help="folder of the data set, for pseudo labels")
    parser.add_argument("--output_dir", default="runs/released", help="where checkpoints go")
    parser.add_argument("--list", action="store_true", help="print the names")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import gdown  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from model.published import load_checkpoint  # noqa: E402
from model.released import LANDMARKS, released_state  # noqa: E402
from utils.checkpoint import load_array  # noqa: E402


def download(name, root=None, output_dir="runs/released"):
    """Download one asset and return the list of its files, all checked.

    Args:
        name: of ASSETS; root: folder of the data set, for pseudo labels (they go to ROOT/pseudo_labels);
        output_dir: checkpoints go to OUTPUT_DIR/NAME/model_best.pth.
    Raises:
        UserError: unknown name; the file is moved, blocked, damaged, or not what it should be.
    """
    if name not in ASSETS:
        raise UserError(f"released asset {name!r} is unknown; choose {', '.join(ASSETS)}")
    asset = ASSETS[name]
    if asset.images is None:
        return [_fetch(asset.id, Path(output_dir) / name / CHECKPOINT_NAME, asset)]
    folder = Path(root or asset.root) / "pseudo_labels"
    ids = dict.fromkeys(asset.images)
    if not all((folder / name).is_file() for name in ids):
        ids = _list_folder(asset, folder)
    return [_fetch(file_id, folder / name, asset) for name, file_id in ids.items()]


def _list_folder(asset, folder):
    """List the .npy files in a Drive folder, subfolders included: path below the folder -> file id."""
    try:
        listed = gdown.download_folder(id=asset.id, skip_download=True, quiet=True, timeout=TIMEOUT)
    except Exception as error:          # gdown passes on what its libraries raise
        raise UserError(_by_hand(asset, folder, f"cannot be listed ({_short(error)})"))
    files = {file.path: file.id for file in listed or () if file.path.endswith(".npy")}
    names = {Path(path).name for path in files}
    if not names >= set(LABEL_NAMES.values()) or any(".." in Path(path).parts for path in files):
        raise UserError(_by_hand(asset, folder, f"holds {', '.join(sorted(names)) or 'no .npy file'} instead of "
                                                f"{' and '.join(LABEL_NAMES.values())}"))
    return files


def _fetch(file_id, path, asset):
    """Download a file beside path, check it and rename it: a file appears under its name only when it is complete."""
    if path.is_file():
        try:
            check(path, path.name, asset)
        except ValueError as error:
            raise UserError(f"{path} is there, but {error}; delete it and run the same command again")
        return path
    arriving = path.with_name(f"{path.name}.download")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        gdown.download(url=FILE_URL.format(id=file_id), output=str(arriving), resume=True, retries=RETRIES,
                       timeout=TIMEOUT)
    except Exception as error:          # gdown passes on what its libraries raise
        partial = [p.name for p in path.parent.glob(f"{arriving.name}*.part") if p.stat().st_size]
        kept = f"; {partial[0]} is kept: run the same command again to resume, or delete it to start anew" if partial \
            else ""
        raise UserError(_by_hand(asset, path, f"could not be downloaded ({_short(error)}){kept}"))
    try:
        check(arriving, path.name, asset)
    except ValueError as error:
        arriving.unlink()
        raise UserError(_by_hand(asset, path, f"arrived, but {error}; what arrived was deleted"))
    return arriving.rename(path)


def _by_hand(asset, target, found):
    """Say that a download failed, and how to do it with a browser."""
    return (f"{asset.what} {found}. If that stays so, download {asset.page} with a browser to {target} and run the "
            "same command to check it")


def _short(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def check(path, name, asset):
    """Raise ValueError unless a file is what it should be. Args: name: its name when it is complete."""
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            raise ValueError("it is a web page instead of the file (moved, not public, or downloaded too often today)")
    if asset.images:
        check_labels(path, asset.images.get(name))
    else:
        check_checkpoint(path)


def check_checkpoint(path):
    """Raise ValueError unless a file is a whole checkpoint in the released format."""
    try:
        state = released_state(load_checkpoint(path)) or {}
    except UserError as error:
        raise ValueError(str(error))
    missing = [name for name in LANDMARKS if name not in state]
    if missing:
        raise ValueError(f"it lacks {missing[0]}; expected a checkpoint in the released format")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or not torch.isfinite(value).all():
            raise ValueError(f"its {name} is no tensor of finite numbers")
    channels, shape = len(state["base_resnet.base.layer4.0.conv3.weight"]), tuple(state["bottleneck.weight"].shape)
    if shape != (channels,):
        raise ValueError(f"its bottleneck.weight has shape {shape} instead of ({channels},)")


def check_labels(path, images):
    """Raise ValueError unless a .npy file holds integers (N,) from -1 on; images: N, or None if it is unknown."""
    try:
        labels = load_array(path)
    except ValueError as error:
        raise ValueError(f"it is no readable .npy array ({error})")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError("it holds something else than one row of integers")
    if labels.size == 0 or labels.min() < -1:
        raise ValueError("it is empty or holds labels below -1")
    if images is not None and len(labels) != images:
        raise ValueError(f"it holds {len(labels)} labels instead of {images}, one per training image")


def main(arguments=None):
    """Download what the command line names."""
    options = parse_arguments(arguments)
    if options.list:
        print("\n".join(f"{name:<18} {asset.what:<32} {asset.page}" for name, asset in ASSETS.items()))
    elif options.name is None:
        raise UserError(f"no released asset was named; choose {', '.join(ASSETS)}, or see --list")
    else:
        for path in download(options.name, options.root, options.output_dir):
            print(f"{path}: downloaded and checked")


if __name__ == "__main__":
    exit_on_user_error(main)
