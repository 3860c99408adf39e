"""Find people in a folder of images with a trained model: a picture of one modality, a folder of the other.

    python tools/search.py --checkpoint runs/sysu/model_last.pth --gallery FOLDER --query IMAGE [IMAGE ...]
                           [--query_modality ir] [--count 10] [--output runs/search] [--device auto]

Prints the nearest images of the folder and its folders, and writes them with their pictures to OUTPUT/search.html.
The folder's features are kept in OUTPUT, so only the first search takes long. Files and folders whose names begin with
a dot are skipped.
"""
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the script lies one folder below the imports

from utils.errors import Parser, UserError, existing, exit_on_user_error, one_line, quoted, whole_number  # noqa: E402


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="of train_prepare.py or train_clip.py, or a released one")
    parser.add_argument("--gallery", required=True, type=existing("folder", "a folder of images"),
                        help="folder of images of the other modality")
    parser.add_argument("--query", required=True, nargs="+", type=existing("file", "an image file"), help="image files")
    parser.add_argument("--query_modality", choices=("rgb", "ir"), default="ir", help="default: ir")
    parser.add_argument("--count", type=whole_number(1, 10_000), default=10,
                        help="images to find per query; default: 10")
    parser.add_argument("--output", default="runs/search", help="folder of the page and of the features")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tqdm import tqdm  # noqa: E402

from configs.checkpoint import read_checkpoint, settings_of  # noqa: E402
from configs.defaults import load_config  # noqa: E402
from data.images import ImageBank, decode_image, file_stat, in_parallel, read_image  # noqa: E402
from data.manifest import stored_range  # noqa: E402
from model.released import model_from_checkpoint  # noqa: E402
from model.state_dict import weights_digest  # noqa: E402
from processor.features import embed  # noqa: E402
from processor.metrics import rank_gallery  # noqa: E402
from report.figures import MODALITY_NAMES  # noqa: E402
from report.page import Section, jpeg_text, write_page  # noqa: E402
from utils.checkpoint import load_array, save_array  # noqa: E402
from utils.modality import Modality  # noqa: E402
from utils.runtime import pick_device, print_line, unused_gpu_warning  # noqa: E402

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
OTHER_QUERY = "name another query"
OTHER_GALLERY = "take it out of the gallery, or replace it"
AT_ONCE = 512               # images held in memory
PICTURE = 240, 320          # width and height in pixels that a picture on the page fits into


def main():
    """Search as the command line says. Raises UserError: a file or folder is missing or broken."""
    arguments = parse_arguments()
    modality = Modality(arguments.query_modality)
    if arguments.device == "auto" and unused_gpu_warning():
        print_line(f"warning: {unused_gpu_warning()}")
    searcher = Searcher(arguments.checkpoint, pick_device(arguments.device))
    for path in arguments.query:
        decode_image(path, OTHER_QUERY, searcher.ranges[modality])      # before the gallery, which takes long
    paths = image_files(arguments.gallery)
    kept = Path(arguments.output) / features_name(searcher, paths, modality.other)
    known = kept.is_file()
    features = load_array(kept) if known else searcher.embed_files(paths, modality.other)
    if not known:
        save_array(kept, features)
    print_line(f"{len(paths):,} {MODALITY_NAMES[modality.other.value]} images"
               + ", features from the last search" * known)
    order, distance = nearest(searcher.embed_files(arguments.query, modality), features, arguments.count)
    found = {}
    for number, query in enumerate(arguments.query):
        found[query] = [(paths[i], float(d)) for i, d in zip(order[number], distance[number])]
        print_line(f"\n{one_line(query)}")
        for rank, (path, d) in enumerate(found[query], 1):
            print_line(f"{rank:4} {d:8.4f}  {one_line(path)}")
    print_line(f"\npictures: {write_search_page(arguments, found, searcher.ranges)}")


class Searcher:
    """Embeds image files with a trained model.

    Args:
        checkpoint: a file of train_prepare.py or train_clip.py, a released one, or hf://OWNER/NAME.
        device: torch device.

    Raises:
        UserError: the checkpoint is missing, damaged or none of these.

    Example:
        >>> import tempfile
        >>> from model.cclnet import CCLNet
        >>> model = CCLNet(load_tower("assets/demo_clip.pt", height=96, width=48))
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save({"state_dict": model.state_dict(), "model": model.describe()}, file.name)
        ...     searcher = Searcher(file.name, torch.device("cpu"))
        >>> searcher.embed_files(["docs/images/ranking.png"], "rgb").shape
        (1, 512)
    """

    def __init__(self, checkpoint, device):
        content = read_checkpoint(checkpoint)
        model = model_from_checkpoint(content, checkpoint)
        self.size, self.device = tuple(model.describe()[side] for side in ("height", "width")), device
        self.digest = weights_digest(model)
        config = load_config(base=settings_of(content))
        self.normalisation, self.mirrored = config.INPUT.NORMALISATION, config.TEST.MIRRORED
        self.ranges = {m: stored_range(content, m) for m in Modality}       # of images of more than 8 bits
        self.model = model.to(device, memory_format=torch.channels_last)

    def embed_files(self, paths, modality):
        """Embed image files.

        Args:
            paths: (N,) of image files, of any size; they are resized to that of training.
            modality: a `Modality`, "rgb" or "ir".

        Returns:
            (N, D) float32 array, rows of unit length.

        Raises:
            UserError: a file is missing or broken.
        """
        parts, modality, grey_range = [], Modality(modality), self.ranges[modality]
        for start in tqdm(range(0, len(paths), AT_ONCE), f"embedding {modality.value} images",
                          disable=None if len(paths) > AT_ONCE else True):
            images = np.stack(in_parallel(lambda path: read_image(path, *self.size, OTHER_GALLERY, grey_range),
                                          paths[start:start + AT_ONCE], "decoding"))
            bank = ImageBank(images, self.device, normalisation=self.normalisation)
            rows = embed(self.model, bank, modality, batch_size=64, precision="released", mirrored=self.mirrored)
            parts.append(F.normalize(rows["feature"], dim=1).cpu())
        return torch.cat(parts).numpy()


def features_name(searcher, paths, modality):
    """Name the file of a folder's features by all that decides them: the model, the files, how they are read."""
    stats = [(str(path.resolve()), file_stat(path)) for path in paths]
    made_from = [searcher.digest, modality.value, searcher.size, searcher.normalisation, searcher.mirrored,
                 searcher.ranges[modality], *((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)]
    return f"features-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}.npy"


def image_files(folder):
    """List the image files in a folder and below, sorted; names that begin with a dot are skipped.

    Raises: UserError: the folder holds no image.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not paths:
        raise UserError(f"gallery {quoted(folder)} holds no image; expected files ending in {', '.join(IMAGE_ENDINGS)}")
    return paths


def nearest(query, gallery, count):
    """Find the gallery rows nearest to each query by cosine distance.

    Args: query: (Q, D), gallery: (G, D), both L2-normalised. Returns: (Q, n) positions and (Q, n) distances,
        n = min(count, G).

    Example:
        >>> nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]]), 1)
        (array([[1]]), array([[0.4]]))
    """
    distance = 1 - query @ gallery.T
    order = rank_gallery(distance)[:, :count]
    return order, np.take_along_axis(distance, order, axis=1)


def write_search_page(arguments, found, ranges):
    """Write OUTPUT/search.html with the pictures: its path.

    Args: found: query -> list of (path, distance); ranges: of `Searcher`.
    """
    images, modality = {}, Modality(arguments.query_modality)

    def shown(path, m, *lines):
        name = f"picture{len(images)}"
        images[name] = jpeg_text(decode_image(path, grey_range=ranges[m]), *PICTURE)
        return {"image": name, "path": str(path), "lines": lines}

    sections = [Section(f"query{number}", Path(query).name, "search_results.html", {
        "query": shown(query, modality, "query", query),
        "found": [shown(path, modality.other, f"{d:.3f}", path.parent.name) for path, d in nearest]})
        for number, (query, nearest) in enumerate(found.items(), 1)]
    return write_page(Path(arguments.output) / "search.html", f"Search in {arguments.gallery}",
                      f"{arguments.checkpoint}; the number is the cosine distance", sections, images)


if __name__ == "__main__":
    exit_on_user_error(main)
