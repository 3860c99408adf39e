"""Find people in a folder of images with a trained model: a picture of one modality, a folder of the other.

    python -m utils.search --checkpoint runs/sysu/model_last.pth --gallery FOLDER --query IMAGE [IMAGE ...]
                           [--query_modality ir] [--count 10] [--output runs/search] [--device auto]

Prints the nearest images of the folder and its folders, and writes them with their pictures to OUTPUT/search.html.
The folder's features are kept in OUTPUT, so only the first search takes long.
"""
from pathlib import Path

# The only import of a higher package in utils: this module is a command, and nothing imports it.
from processor.search import Searcher, nearest, picture
from utils import page
from utils.checkpoint import write_atomically
from utils.errors import Parser, UserError, exit_on_user_error
from utils.figures import MODALITY_NAMES
from utils.modality import Modality
from utils.runtime import pick_device


def main():
    """Search as the command line says."""
    arguments = parse_arguments()
    modality = Modality(arguments.query_modality)
    missing = [path for path in arguments.query if not Path(path).is_file()]
    if missing:
        raise UserError(f"query {missing[0]} is missing; expected an image file")
    searcher = Searcher(arguments.checkpoint, pick_device(arguments.device))
    paths, features, cached = searcher.gallery(arguments.gallery, modality.other, arguments.output)
    print(f"{len(paths):,} {MODALITY_NAMES[modality.other.value]} images"
          + (", features from the last search" if cached else ""))
    order, distance = nearest(searcher.embed_files(arguments.query, modality), features, arguments.count)
    found = [[(paths[p], float(d)) for p, d in zip(*row)] for row in zip(order, distance)]
    for query, images in zip(arguments.query, found):
        print(f"\n{query}\n" + "\n".join(f"{rank:4} {d:8.4f}  {path}" for rank, (path, d) in enumerate(images, 1)))
    print(f"\npictures: {write_page(arguments, found)}")


def parse_arguments():
    """The command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="of train_prepare.py or train_clip.py, or a released one")
    parser.add_argument("--gallery", required=True, help="folder of images of the other modality")
    parser.add_argument("--query", required=True, nargs="+", help="image files")
    parser.add_argument("--query_modality", choices=[m.value for m in Modality], default="ir", help="default: ir")
    parser.add_argument("--count", type=int, default=10, help="images to find per query")
    parser.add_argument("--output", default="runs/search", help="folder of the page and of the features")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    arguments = parser.parse_args()
    if arguments.count < 1:
        raise UserError(f"--count is {arguments.count}; expected 1 or more")
    return arguments


def write_page(arguments, found):
    """OUTPUT/search.html with the pictures. Args: found: per query a list of (path, distance)."""
    images, sections = {}, []
    for number, (query, nearest_images) in enumerate(zip(arguments.query, found), 1):
        shown = [page.picture(_add(images, query), "query", "query", str(query))]
        shown += [page.picture(_add(images, path), f"{d:.3f}<br>{page.escape(path.parent.name)}", "", str(path))
                  for path, d in nearest_images]
        sections.append((f"query{number}", query,
                         f'<div class="panel"><div class="list">{"".join(shown)}</div></div>'))
    path = Path(arguments.output) / "search.html"
    text = page.page(f"Search in {arguments.gallery}", f"{arguments.checkpoint}; the number is the cosine distance",
                     sections, images)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _add(images, path):
    """The name of a file's picture, which is added to images (name -> base64 JPEG)."""
    name = f"picture{len(images)}"
    images[name] = picture(path)
    return name


if __name__ == "__main__":
    exit_on_user_error(main)
