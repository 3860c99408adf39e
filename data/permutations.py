"""The galleries of SYSU-MM01's original protocol, from its file exp/rand_perm_cam.mat."""
import numpy as np
from scipy.io import loadmat

from utils.errors import UserError


def permuted_galleries(path, places, trials, shots):
    """The gallery of each trial: per person and camera the first images of the trial's permutation.

    Args:
        path: of rand_perm_cam.mat: a cell per camera, in it a cell per person (both counted from 1), in it
        (trials, images) with a permutation of the image numbers 1 to n in every row;
        places: {(person, camera): positions of the images, in file order}; shots: images per person and camera,
        or all where there are fewer.
    Returns: tuple of `trials` arrays (G,), positions.
    Raises: UserError: the file is missing or damaged, or its permutations do not belong to these images.
    """
    cells = _read(path)
    galleries = [[] for _ in range(trials)]
    for (person, camera), positions in places.items():
        try:
            rows = np.atleast_2d(cells[camera - 1].ravel()[person - 1]).astype(np.int64)
        except (IndexError, AttributeError, TypeError, ValueError):
            raise UserError(f"{path} has no permutations for person {person} in camera {camera}; expected a cell per "
                            "camera and in it a cell per person. Take the file of the original data set")
        if rows.shape[1] != len(positions) or (np.sort(rows, axis=1) != np.arange(1, len(positions) + 1)).any():
            raise UserError(f"{path} permutes {rows.shape[1]} images of person {person} in camera {camera}, but the "
                            f"folder holds {len(positions)}; expected the same images. Take file and folders of the "
                            "original data set")
        if len(rows) < trials:
            raise UserError(f"{path} holds {len(rows)} trials; TEST.TRIALS is {trials}. Set it to {len(rows)} or less")
        for gallery, row in zip(galleries, rows):
            gallery.extend(positions[number - 1] for number in row[:shots])
    return tuple(np.array(gallery, dtype=np.int64) for gallery in galleries)


def _read(path):
    """The cells of all cameras: (6,) object array."""
    try:
        with open(path, "rb") as file:
            return loadmat(file, variable_names=["rand_perm_cam"])["rand_perm_cam"].ravel()
    except FileNotFoundError:
        raise UserError(f"{path} is missing, and TEST.PROTOCOL original reads its galleries there; take the file of "
                        "the original data set, or set TEST.PROTOCOL python")
    except Exception as error:     # scipy raises many kinds on damaged or foreign files
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}); expected the MATLAB variable "
                        "rand_perm_cam. Take the file of the original data set")
