"""Draw ranked lists: queries at the left, their nearest gallery images framed green (right) or red (wrong).

    python test.py --resume_path runs/demo/seed1/model_last.pth --save_ranking OUTPUT_DIR runs/demo/seed1/ranking
    python tools/ranking_picture.py runs/demo/seed1/ranking/ranking_all.csv dataset/demo assets/ranking.png
"""
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the script lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, quoted, whole_number  # noqa: E402


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("ranking", help="CSV of test.py --save_ranking")
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("picture", help=".png to write")
    parser.add_argument("--queries", type=whole_number(1, 100), default=6, help="how many lists; default: 6")
    parser.add_argument("--ranks", type=whole_number(1, 100), default=8, help="gallery images in each; default: 8")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

from PIL import Image, ImageOps  # noqa: E402

from data.images import decode_image  # noqa: E402
from utils.checkpoint import write_atomically  # noqa: E402

WIDTH, HEIGHT, FRAME, GAP = 64, 128, 4, 6       # pixels
STEP_X, STEP_Y = WIDTH + 2 * FRAME + GAP, HEIGHT + 2 * FRAME + GAP
RIGHT, WRONG, NEUTRAL = (30, 150, 60), (200, 40, 40), (120, 120, 120)


def main():
    """Draw the lists that the command line names, and save. Raises UserError: a file is missing or broken."""
    arguments = parse_arguments()
    image = draw(read_lists(arguments.ranking, arguments.queries, arguments.ranks), Path(arguments.root),
                 arguments.ranks)
    write_atomically(arguments.picture, lambda file: image.quantize(256).save(file, "PNG", optimize=True))


def read_lists(path, count, ranks):
    """Read evenly spread queries of a file's first trial: [(query, [(gallery image, whether it is right)])].

    Raises: UserError: the file is missing, or no CSV of `test.py --save_ranking`.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lists = {}
        for row in rows:
            if row["trial"] == rows[0]["trial"] and int(row["rank"]) <= ranks:
                lists.setdefault(row["query"], []).append((row["gallery"], row["match"] == "1"))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"ranking {quoted(path)} cannot be read ({error}); expected ranking_MODE.csv of test.py "
                        "--save_ranking")
    if not lists:
        raise UserError(f"ranking {quoted(path)} holds no list; expected ranking_MODE.csv of test.py --save_ranking")
    queries = sorted(lists)
    return [(query, lists[query]) for query in queries[::max(1, len(queries) // count)][:count]]


def draw(lists, root, ranks):
    """Draw a row of framed images per query. Args: lists: of `read_lists`; root: folder of their paths."""
    sheet = Image.new("RGB", ((ranks + 1) * STEP_X + 3 * GAP, len(lists) * STEP_Y + GAP), "white")
    for row, (query, gallery) in enumerate(lists):
        top = GAP + row * STEP_Y
        sheet.paste(framed(root / query, NEUTRAL), (GAP, top))
        for column, (path, right) in enumerate(gallery, 1):
            sheet.paste(framed(root / path, RIGHT if right else WRONG), (3 * GAP + column * STEP_X, top))
    return sheet


def framed(path, colour):
    """Read an image and frame it. Raises UserError: it is missing or does not decode."""
    image = decode_image(path, "expected an image of the ranking in the folder of the data set that was tested")[0]
    return ImageOps.expand(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), FRAME, colour)


if __name__ == "__main__":
    exit_on_user_error(main)
