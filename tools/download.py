"""Download what the authors of CCLNet released: checkpoints and pseudo labels, checked before they count as there.

    python tools/download.py NAME [--root DATASET_ROOT] [--output_dir runs/released]
    python tools/download.py --list

An interrupted download resumes where it stopped when the same command is run again.
"""
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, in_brief, one_line  # noqa: E402

FILE_URL = "https://drive.google.com/uc?id={id}"                   # for programs
FILE_PAGE = "https://drive.google.com/file/d/{id}/view"            # for people
FOLDER_PAGE = "https://drive.google.com/drive/folders/{id}"
RETRIES = 2                  # of an interrupted transfer, before the user is told
TIMEOUT = 15                 # seconds without a byte


class Asset(NamedTuple):
    """A released checkpoint, or a released folder of pseudo labels."""

    id: str
    what: str
    size: str
    gives: str = ""             # Rank-1 / mAP in percent as the authors' README says, best on test data
    root: str = ""              # folder of the data set that pseudo labels belong to
    images: tuple = ()          # labels in each file, of visible and infrared images

    @property
    def page(self):
        """Return the address for a browser."""
        return (FOLDER_PAGE if self.images else FILE_PAGE).format(id=self.id)


CHECKPOINT = "0.62 GB"          # computed: 154 million weights of 4 bytes; labels: 8 bytes an image
ASSETS = {
    "sysu-prepare": Asset("1mK41qVbKmWHQLgfSPijk0RYDrWVJdOsG", "SYSU-MM01, train_prepare", CHECKPOINT, "50.02 / 45.52"),
    "sysu-clip-2023-11": Asset("1-qniQHrgmVYxERh62hacV0Kt07y_sZuU", "SYSU-MM01, train_clip, 2023-11", CHECKPOINT,
                               "55.31 / 50.38 (an earlier README: 54.01 / 52.02)"),
    "sysu-clip-2024-03": Asset("1ga6ZCLFDRUbebsisvRXkqR2dc1kV-gH-", "SYSU-MM01, train_clip, 2024-03", CHECKPOINT,
                               "55.31 / 50.38"),
    "regdb-clip-trial1": Asset("1F8Hh-6J4Va0YI8uA7HWpi-oLC2CW7-MS", "RegDB trial 1, train_clip", CHECKPOINT,
                               "71.94 / 67.63 (direction not stated)"),
    "sysu-labels": Asset("1Ysl8tHZ1ZmKlFXnuJHWBZJ9Giel0Q6nZ", "SYSU-MM01, pseudo labels", "0.3 MB", "",
                         "dataset/SYSU-MM01", (22258, 11909)),
    "regdb-labels": Asset("1porzH8N5rVPB-7R2xo3AEdD3whly0w8Z", "RegDB, pseudo labels", "0.03 MB", "", "dataset/RegDB",
                          (2060, 2060)),
}


def parse_arguments(arguments=None):
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", choices=ASSETS, metavar="NAME", help=", ".join(ASSETS))
    parser.add_argument("--root", help="folder of the data set, for pseudo labels")
    parser.add_argument("--output_dir", default="runs/released", help="where checkpoints go")
    parser.add_argument("--list", action="store_true", help="print names, sizes, and the figures that they should give")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import gdown  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from data.pseudo_labels import FILE_NAMES  # noqa: E402
from model.published import load_checkpoint  # noqa: E402
from model.released import LANDMARKS, released_state  # noqa: E402
from utils.checkpoint import load_array  # noqa: E402


def download(name, root=None, output_dir="runs/released"):
    """Download one asset and return the list of its files, all checked.

    Args:
        name: of ASSETS; root: folder of the data set, for pseudo labels (they go to ROOT/pseudo_labels);
        output_dir: checkpoints go to OUTPUT_DIR/NAME/model_best.pth.
    Raises:
        UserError: the file is moved, blocked, damaged, or not what it should be.
    """
    asset = ASSETS[name]
    if not asset.images:
        return [_fetch(asset, asset.id, Path(output_dir) / name / "model_best.pth", check_checkpoint)]
    folder, names = Path(root or asset.root) / "pseudo_labels", FILE_NAMES.values()
    are_there = all((folder / file).is_file() for file in names)
    ids = dict.fromkeys(names) if are_there else _list_folder(asset, folder)
    return [_fetch(asset, ids[file], folder / file, partial(check_labels, images=images))
            for file, images in zip(names, asset.images)]


def _list_folder(asset, folder):
    """Find the files of pseudo labels in a Drive folder, subfolders included: name -> file id."""
    try:
        listed = gdown.download_folder(id=asset.id, skip_download=True, quiet=True, timeout=TIMEOUT)
    except Exception as error:          # gdown passes on what its libraries raise
        raise UserError(_by_hand(asset, folder, f"cannot be listed ({in_brief(error)})"))
    files = {Path(file.path).name: file.id for file in listed or ()}
    if not files.keys() >= set(FILE_NAMES.values()):
        raise UserError(_by_hand(asset, folder, f"holds {', '.join(sorted(files)) or 'no file'} instead of "
                                                f"{' and '.join(FILE_NAMES.values())}"))
    return files


def _fetch(asset, file_id, path, check):
    """Download a file beside path, check it and rename it: a file appears under its name only when it is complete."""
    if path.is_file():
        try:
            check(path)
        except (ValueError, UserError) as error:
            raise UserError(f"{path} is there, but {error}; delete it and run the same command again")
        return path
    arriving = path.with_name(f"{path.name}.download")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        gdown.download(url=FILE_URL.format(id=file_id), output=str(arriving), resume=True, retries=RETRIES,
                       timeout=TIMEOUT)
    except Exception as error:          # gdown passes on what its libraries raise
        partly = next((p.name for p in path.parent.glob(f"{arriving.name}*.part") if p.stat().st_size), "")
        kept = f"; {partly} is kept: run the same command again to resume, or delete it to start anew" if partly else ""
        raise UserError(_by_hand(asset, path, f"could not be downloaded ({in_brief(error)}){kept}"))
    try:
        check(arriving)
    except (ValueError, UserError) as error:
        arriving.unlink()
        raise UserError(_by_hand(asset, path, f"arrived, but {error}; what arrived was deleted"))
    return arriving.rename(path)


def _by_hand(asset, target, found):
    """Say that a download failed, and how to do it with a browser."""
    return (f"{asset.what} {found}. If that stays so, download {asset.page} with a browser to {target} and run the "
            "same command to check it")


def check_no_page(path):
    """Raise ValueError if a file is a web page, which Drive sends in place of some files."""
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            raise ValueError("it is a web page instead of the file (moved, not public, or downloaded too often today)")


def check_checkpoint(path):
    """Raise ValueError or UserError unless a file is a whole checkpoint in the released format."""
    check_no_page(path)
    state = released_state(load_checkpoint(path)) or {}
    if missing := [name for name in LANDMARKS if name not in state]:
        raise ValueError(f"it lacks {missing[0]}; expected a checkpoint in the released format")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or not torch.isfinite(value).all():
            raise ValueError(f"its {name} is no tensor of finite numbers")


def check_labels(path, images):
    """Raise ValueError unless a .npy file holds a label from -1 on for each of some images. Args: images: how many."""
    check_no_page(path)
    try:
        labels = load_array(path)
    except ValueError as error:
        raise ValueError(f"it is no readable .npy array ({error})")
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < -1:
        raise ValueError(f"it holds {labels.dtype} of shape {labels.shape}; expected {images} integers from -1 on, one "
                         "per training image")


def main(arguments=None):
    """Download what the command line names."""
    options = parse_arguments(arguments)
    if options.list:
        print("Rank-1 / mAP in percent as the authors state them, best on test data; sizes are computed.\n")
        for name, asset in ASSETS.items():
            print(f"{name:<18} {asset.size:>8}  {asset.what:<31} {asset.gives}".rstrip(), f"\n{'':20}{asset.page}")
    elif options.name is None:
        raise UserError(f"no released asset was named; choose {', '.join(ASSETS)}, or see --list")
    else:
        for path in download(options.name, options.root, options.output_dir):
            print(f"{one_line(path)}: downloaded and checked")


if __name__ == "__main__":
    exit_on_user_error(main)
