"""A picture of ranked lists: queries at the left, their nearest gallery images framed green (right) or red (wrong).

    python test.py --resume_path runs/demo/seed1/model_last.pth --save_ranking OUTPUT_DIR runs/demo/seed1/ranking
    python tools/ranking_picture.py runs/demo/seed1/ranking/ranking_all.csv dataset/demo assets/ranking.png
"""
import argparse
import csv
from pathlib import Path

from PIL import Image, ImageOps

WIDTH, HEIGHT, FRAME, GAP = 64, 128, 4, 6
RIGHT, WRONG, NEUTRAL = (30, 150, 60), (200, 40, 40), (120, 120, 120)


def tile(path, colour):
    """One framed image."""
    image = Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.LANCZOS)
    return ImageOps.expand(image, FRAME, colour)


def read_lists(path, count, ranks):
    """Evenly spread queries of the first trial: [(query, [(gallery, is right)])]."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    lists = {}
    for row in rows:
        if row["trial"] == rows[0]["trial"] and int(row["rank"]) <= ranks:
            right = row["gallery_person"] == row["query_person"]
            lists.setdefault(row["query"], []).append((row["gallery"], right))
    queries = sorted(lists)
    return [(query, lists[query]) for query in queries[::max(1, len(queries) // count)][:count]]


def main():
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranking", help="CSV of test.py --save_ranking")
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("picture", help=".png to write")
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--ranks", type=int, default=8)
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
    main()
