"""Draw ranked lists: queries at the left, their nearest gallery images framed green (right) or red (wrong).

    python test.py --resume_path runs/demo/seed1/model_last.pth --save_ranking OUTPUT_DIR runs/demo/seed1/ranking
    python tools/ranking_picture.py runs/demo/seed1/ranking/ranking_all.csv dataset/demo assets/ranking.png
"""
import csv
import sys
from pathlib import Path

from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from data.images import decode_image  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402

WIDTH, HEIGHT, FRAME, GAP = 64, 128, 4, 6
RIGHT, WRONG, NEUTRAL = (30, 150, 60), (200, 40, 40), (120, 120, 120)


def tile(path, colour):
    """Read one image file and frame it."""
    image = decode_image(path)[0].resize((WIDTH, HEIGHT), Image.LANCZOS)
    return ImageOps.expand(image, FRAME, colour)


def read_lists(path, count, ranks):
    """Read evenly spread queries of the first trial: [(query, [(gallery, is right)])].

    Raises: UserError: the file is missing, or is not what test.py --save_ranking writes.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"ranking {path} cannot be read ({error}); expected a CSV file of test.py --save_ranking")
    if not rows or not {"trial", "rank", "query", "query_person", "gallery", "gallery_person"} <= rows[0].keys():
        raise UserError(f"ranking {path} holds no ranked lists; expected a CSV file of test.py --save_ranking")
    lists = {}
    for row in rows:
        if row["trial"] == rows[0]["trial"] and int(row["rank"]) <= ranks:
            right = row["gallery_person"] == row["query_person"]
            lists.setdefault(row["query"], []).append((row["gallery"], right))
    queries = sorted(lists)
    return [(query, lists[query]) for query in queries[::max(1, len(queries) // count)][:count]]


def main():
    """Draw and save what the command line names."""
    parser = Parser(__doc__)
    parser.add_argument("ranking", help="CSV of test.py --save_ranking")
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("picture", help=".png to write")
    parser.add_argument("--queries", type=int, default=6, help="default: 6")
    parser.add_argument("--ranks", type=int, default=8, help="default: 8")
    arguments = parser.parse_args()
    lists = read_lists(arguments.ranking, arguments.queries, arguments.ranks)
    step_x, step_y = WIDTH + 2 * FRAME + GAP, HEIGHT + 2 * FRAME + GAP
    page = Image.new("RGB", ((arguments.ranks + 1) * step_x + 3 * GAP, len(lists) * step_y + GAP), "white")
    for row, (query, gallery) in enumerate(lists):
        page.paste(tile(Path(arguments.root) / query, NEUTRAL), (GAP, GAP + row * step_y))
        for column, (path, right) in enumerate(gallery, 1):
            page.paste(tile(Path(arguments.root) / path, RIGHT if right else WRONG),
                       (3 * GAP + column * step_x, GAP + row * step_y))
    page.quantize(256).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    exit_on_user_error(main)
