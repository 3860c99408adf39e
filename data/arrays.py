"""Training images from the .npy files that codebases of the field share, where the image files are not there."""
import numpy as np

from data.images import CacheFiles
from data.records import ImageSet
from utils.errors import UserError


def shared_array(folder, modality, parse):
    """The training images of a modality from train_{rgb,ir}_resized_{img,label,path}.npy; None without such an array.

    Args: folder: of the files; parse: file path -> (path from the root, person, camera), or None if it is no such
        path.
    Returns: `ImageSet` with its array.
    Raises: UserError: a file is missing or damaged, shapes or types are wrong, paths are no paths of the data set or
        not in its order, or labels and paths name different persons.
    """
    files = CacheFiles(folder, "train", modality.value)
    if not files.images.is_file():
        return None
    images, labels, paths = (_read(path) for path in (files.images, files.labels, files.paths))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{files.images} holds {images.dtype} of shape {images.shape}; expected uint8 (N, H, W, 3). "
                        "Make it again from the image folders with data/process.py")
    if not labels.shape == paths.shape == images.shape[:1]:
        raise UserError(f"{files.images} holds {len(images)} images, {files.labels.name} {labels.shape} labels and "
                        f"{files.paths.name} {paths.shape} paths; expected one of each per image. Take three files "
                        "that were made together")
    rows = [parse(str(path).replace("\\", "/")) for path in paths.tolist()]
    if not rows or None in rows:
        found = paths[rows.index(None)] if rows else "nothing"
        raise UserError(f"{files.paths} holds {str(found)!r}; expected file paths in the layout of the data set. Take "
                        "the file that was made with the images")
    keys = [(person, camera, path) for path, person, camera in rows]
    if any(a >= b for a, b in zip(keys, keys[1:])):
        place = next(i for i, (a, b) in enumerate(zip(keys, keys[1:])) if a >= b)
        raise UserError(f"{files.paths} lists {keys[place + 1][2]} after {keys[place][2]}; expected paths sorted by "
                        "person, camera and name, the order of pseudo labels. Make the files again with "
                        "data/process.py")
    persons = [row[1] for row in rows]
    pairs = set(zip(persons, labels.tolist()))
    if not len(set(persons)) == len(set(labels.tolist())) == len(pairs):
        raise UserError(f"{files.labels} and {files.paths.name} disagree about who is who; expected one label per "
                        "person. Take three files that were made together")
    return ImageSet.from_rows(modality, rows, array=files.images)


def _read(path):
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing beside the shared training images; expected _img, _label and _path. Copy "
                        "all three files")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a .npy array of numbers or text. Copy it again")
