"""Read a data set's folders and the text files that say which persons and images it consists of."""
from pathlib import Path

from data.records import ImageSet
from utils.errors import UserError, explained, quoted

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
ORIGINAL = "Take the file of the original data set"


def existing_root(root, layout):
    """Return the folder of a data set as a Path. Raises UserError: it is missing."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data root {quoted(root)} is missing; expected a folder with {layout}. Set DATASET.ROOT")
    return root


def find_images(root, modality, ids, cameras, split, parent=""):
    """List the images in PARENTcamC/PPPP of all persons and cameras, sorted by person, camera and name: `ImageSet`.

    Files with another ending, and those whose name starts with a dot, are no images of the data set.

    Args: split: for messages. Raises: UserError: there are none.
    """
    rows = []
    for person in ids:
        for camera in cameras:
            folder = f"{parent}cam{camera}/{person:04d}"
            if (root / folder).is_dir():
                names = sorted(p.name for p in (root / folder).iterdir()
                               if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
                rows += [(f"{folder}/{name}", person, camera) for name in names]
    if not rows:
        raise UserError(f"{root / parent} holds no {modality.value} {split} image; expected PPPP/NNNN.jpg in "
                        f"{', '.join(f'cam{c}' for c in cameras)} for the {len(ids)} ids of the {split} split. Check "
                        "DATASET.ROOT and the id files")
    return ImageSet.from_rows(modality, rows)


def require_disjoint(train, test, where, remedy):
    """Raise UserError if persons are in training and test. Args: where: what says so, "id files of FOLDER"."""
    if shared := sorted(set(train) & set(test)):
        raise UserError(f"persons {', '.join(map(str, shared[:5]))} ({len(shared)} in all) are in training and test "
                        f"{where}; expected other persons to test. {remedy}")


def read_ids(path, layout):
    """Read the numbers of a file of comma-separated ids, in its order.

    Args: layout: what the data set should look like, for messages.
    Raises: UserError: the file is missing, empty, or holds something else.
    """
    found = "is empty"
    try:
        ids = [int(word) for word in _read(path, layout).replace("\n", ",").split(",") if word.strip()]
    except ValueError:
        ids, found = [], "holds something else than numbers"
    if not ids:
        raise UserError(f"id file {path} {found}; expected one line of comma-separated ids. {ORIGINAL}")
    return ids


def read_image_list(path, layout):
    """Read the (path, label) rows of a list with one image and its integer label a line.

    Raises: UserError: the file is missing or empty, a line is something else, or an image is listed twice.
    """
    rows = []
    for number, line in enumerate(_read(path, layout).splitlines(), start=1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise UserError(f"line {number} of {path} is {line[:80]!r}; expected an image path and a label as in "
                            f"'Visible/11/name.bmp 0'. {ORIGINAL}")
        rows.append((words[0].replace("\\", "/"), int(words[1])))
    paths = {row[0] for row in rows}
    if not rows or len(paths) != len(rows):
        found = "is empty" if not rows else f"lists {len(rows) - len(paths)} of its {len(rows)} images twice"
        raise UserError(f"list {path} {found}; expected one line per image. {ORIGINAL}")
    return rows


def require_file(path, remedy):
    """Raise UserError unless a path leads to a file."""
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")


def _read(path, layout):
    require_file(path, f"expected {layout}. Unpack the data set again or correct DATASET.ROOT")
    with explained(f"file {path} cannot be read", f"expected text. {ORIGINAL}"):
        return path.read_text(encoding="utf-8")
