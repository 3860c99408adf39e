"""Features in a .npz file, of this method or another one, with the queries and galleries that they are tested on.

`rgb_features` (N, D), `rgb_persons`, `rgb_cameras` (N,) integers and `rgb_paths` (N,) text, the same for `ir`. What
`test.py --save_ranking` writes also holds the queries and galleries of its test (`processor.ranking.save_features`).
"""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data import llcm, regdb, sysu
from data.records import ImageSet, Retrieval, require_file
from utils.checkpoint import file_digest
from utils.errors import UserError, explained
from utils.modality import Modality

# How a protocol is called on the command line: data set, its name, its test cameras where they matter, how galleries
# are chosen.
SYSU = sysu.SysuDataSet, "SYSU-MM01", sysu.CAMERAS
PROTOCOLS = {"sysu": (*SYSU, "python"), "sysu-original-1": (*SYSU, "original-1"),
             "sysu-original-10": (*SYSU, "original-10"), "regdb": (regdb.RegDBDataSet, "RegDB", {}, "python"),
             "llcm": (llcm.LLCMDataSet, "LLCM", llcm.CAMERAS, "python")}
ARRAYS = {        # kinds of numpy, dimensions, in words
    "features": ("f", 2, "numbers (N, D)"), "persons": ("iu", 1, "integers (N,)"),
    "cameras": ("iu", 1, "integers (N,)"), "paths": ("U", 1, "text (N,)")}
ADVICE = "tools/evaluate.py --help says what it should hold"


@dataclass(frozen=True)
class FeatureFile:
    """The images and features of a file, in the same order."""

    path: Path
    images: dict        # Modality -> `ImageSet`
    features: dict      # Modality -> (N, D) float32 tensor, L2-normalised
    digest: str         # SHA-256 of the file
    stored: tuple = ()      # `Retrieval`s that the file holds
    dataset: str = "unknown data set"       # as the file names it

    def reordered(self, orders):
        """Return the images and features in another order, without the stored retrievals. Args: Modality -> (N,)."""
        images = {m: ImageSet(m, tuple(self.images[m].paths[i] for i in order), self.images[m].persons[order],
                              self.images[m].cameras[order]) for m, order in orders.items()}
        return replace(self, images=images, stored=(), features={
            m: self.features[m][torch.from_numpy(order)] for m, order in orders.items()})


def read_features(path):
    """Read a file of features: `FeatureFile`.

    Raises: UserError: it is missing or damaged, an array is missing, of another kind or length than the others, or
        features are not finite or 0.
    """
    path = Path(path)
    require_file(path, f"expected a .npz file of arrays. {ADVICE}")      # np.load would wait for a pipe's writer
    with (explained(f"features {path} cannot be read", f"expected a .npz file of arrays. {ADVICE}"),
          np.load(path, allow_pickle=False) as file):
        arrays = dict(file)
    images, features = {}, {}
    for m in Modality:
        count = len(np.atleast_1d(_array(arrays, f"{m.value}_features", path)))
        for what, (kinds, dimensions, expected) in ARRAYS.items():
            array = _array(arrays, f"{m.value}_{what}", path)
            if array.dtype.kind not in kinds or array.ndim != dimensions or len(array) != count or not array.size:
                raise UserError(f"{path}: {m.value}_{what} are {array.dtype} of shape {array.shape}; expected "
                                f"{expected}, one for each of the {count} {m.value}_features. {ADVICE}")
        values, persons, cameras, paths = (arrays[f"{m.value}_{what}"] for what in ARRAYS)
        if len(set(paths.tolist())) < len(paths):
            raise UserError(f"{path}: {m.value}_paths name an image twice; expected each once. {ADVICE}")
        images[m] = ImageSet(m, tuple(paths.tolist()), persons.astype(np.int64), cameras.astype(np.int64))
        features[m] = _normalised(torch.from_numpy(values.astype(np.float32)), f"{path}: {m.value}_features", paths)
    rgb, ir = (features[m].shape[1] for m in Modality)
    if rgb != ir:
        raise UserError(f"{path}: rgb_features have {rgb} numbers an image, ir_features {ir}; expected the same")
    return FeatureFile(path, images, features, file_digest(path), _stored(arrays, path),
                       str(arrays.get("dataset", FeatureFile.dataset)))


def _array(arrays, name, path):
    if name not in arrays:
        raise UserError(f"{path} holds no {name} (it holds {', '.join(sorted(arrays)[:8]) or 'nothing'}); {ADVICE}")
    return arrays[name]


def _normalised(values, what, names):
    """L2-normalise features that are not yet. Raises UserError: some are not finite, or 0."""
    lengths = values.norm(dim=1)
    broken = torch.nonzero(~(torch.isfinite(lengths) & (lengths > 0)))[:, 0]
    if len(broken):
        raise UserError(f"{what} of {len(broken)} images are not finite or all 0, such as {names[int(broken[0])]}; "
                        "expected numbers. Embed these images again")
    return F.normalize(values, dim=1) if (lengths - 1).abs().max() > 1e-3 else values


def _stored(arrays, path):
    """Collect the `Retrieval`s that a file holds. Raises UserError: an array of one is missing."""
    retrievals = []
    for mode in (name.removesuffix("_query") for name in arrays if name.endswith("_query")):
        protocol, rule = (str(_array(arrays, f"{mode}_{what}", path)) for what in ("protocol", "rule"))
        start = f"{mode}_gallery_"
        trials = sorted(int(name.removeprefix(start)) for name in arrays if name.startswith(start))
        retrievals.append(Retrieval(protocol, mode, rule, Modality.RGB if mode == "v2t" else Modality.IR,
                                    arrays[f"{mode}_query"], tuple(arrays[f"{start}{trial}"] for trial in trials),
                                    tuple(trials)))
    return tuple(retrievals)


def as_data_set(file, protocol, root="", trials=10, modes=(), other_data=False):
    """Choose the queries and galleries of a file: the file in their order, `DataSet`, [`Retrieval`].

    Args: file: `FeatureFile`; protocol: of PROTOCOLS, drawn from all images of the file, or "" for what it holds;
        root: of the data set, for the galleries of the original protocol; trials: to draw; modes: () are all;
        other_data: the images may be others than the protocol's data set has; names of data and protocols then say it.
    Raises: UserError: the file holds no test, a mode is unknown, or counts or cameras are not those of the data set.
    """
    if not protocol:
        known = {retrieval.mode: retrieval for retrieval in file.stored}
        if not known:
            raise UserError(f"{file.path} holds no queries and galleries; name the protocol by which they are drawn "
                            f"from all test images: --protocol {' or '.join(PROTOCOLS)}")
        unknown = [mode for mode in modes if mode not in known]
        if unknown:
            raise UserError(f"{file.path} holds no test of mode {unknown[0]}; it holds {' and '.join(known)}")
        data = regdb.RegDBDataSet(file.dataset, Path(root), {}, file.images)
        return file, data, [known[mode] for mode in modes or known]
    kind, name, cameras, galleries = PROTOCOLS[protocol]
    file = file.reordered({m: np.lexsort((images.paths, images.cameras, images.persons))    # as data sets list them
                           for m, images in file.images.items()})
    data = kind(name, Path(root), {}, file.images)
    differences = _differences(data, cameras)
    if differences and not other_data:
        raise UserError(f"{file.path} does not hold the test images of {name}: {'; '.join(differences)}. Embed all of "
                        "them, under the data set's own camera numbers, or add --other_data to test other images by "
                        "its protocol")
    retrievals = [data.retrieval(mode, trials, galleries) for mode in modes or data.modes]
    if differences:
        data = replace(data, name=f"{name} on other data")
        retrievals = [replace(retrieval, protocol=f"{retrieval.protocol}, on other data") for retrieval in retrievals]
    return file, data, retrievals


def _differences(data, cameras):
    """Name in a phrase each test camera and count that is not the data set's. Args: cameras: Modality -> numbers."""
    found = {m: sorted(set(data.test[m].cameras.tolist())) for m in cameras}
    return [f"{m.value} images of cameras {found[m][:12]} instead of {list(expected)}"
            for m, expected in cameras.items() if found[m] != list(expected)] + data.differences()


def aligned(file, like):
    """Return a file in the order of another one.

    Args: file, like: `FeatureFile`. Raises: UserError: they are not of the same images, persons and cameras.
    """
    orders = {}
    for m, images in like.images.items():
        theirs = {path: i for i, path in enumerate(file.images[m].paths)}
        if theirs.keys() != set(images.paths):
            raise UserError(f"{file.path} holds {len(theirs)} {m.value} images, {like.path} {len(images)}, and "
                            f"{min(theirs.keys() ^ set(images.paths))} is in one alone; expected features of the same "
                            "images. Embed the same test images with both methods")
        orders[m] = np.array([theirs[path] for path in images.paths])
        for what in ("persons", "cameras"):
            differs = np.flatnonzero(getattr(images, what) != getattr(file.images[m], what)[orders[m]])
            if len(differs):
                raise UserError(f"{file.path} and {like.path} name other {what} for {images.paths[differs[0]]} "
                                f"({len(differs)} {m.value} images); expected the same. Take both from one data set")
    return file.reordered(orders)
