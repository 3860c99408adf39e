"""Draw ranked lists: queries at the left, their nearest gallery images with a tick (right) or a cross (wrong).

    python test.py --resume_path runs/demo/seed1/model_last.pth --save_ranking
    python test.py --config_file configs/demo.yml OUTPUT_DIR runs/demo/seed1 --save_ranking
    python tools/dev/ranking_picture.py RANKING.csv dataset/demo docs/images/ranking.png --baseline BASELINE.csv

Each query has two rows: its list in the baseline's file above, in the first one below, both named. All queries are
sorted by how much average precision among the images shown they gained, and taken at equal steps.
"""
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the script lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, quoted, whole_number  # noqa: E402


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("ranking", help="CSV of test.py --save_ranking")
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("picture", help=".png to write")
    parser.add_argument("--queries", type=whole_number(1, 100), default=3, help="how many lists; default: 3")
    parser.add_argument("--ranks", type=whole_number(1, 100), default=8, help="gallery images in each; default: 8")
    parser.add_argument("--baseline", required=True, help="another CSV of the same test, drawn above")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

from data.images import decode_image  # noqa: E402
from report.lists import draw_lists  # noqa: E402
from utils.checkpoint import write_atomically  # noqa: E402

ADVICE = "expected an image of the ranking in the folder of the data set that was tested"


def main():
    """Draw the lists that the command line names, and save. Raises UserError: a file is missing or broken."""
    arguments = parse_arguments()
    before, after = (read_lists(path, arguments.ranks) for path in (arguments.baseline, arguments.ranking))
    if set(before) != set(after):
        raise UserError(f"{quoted(arguments.baseline)} ranks other queries than {quoted(arguments.ranking)}; expected "
                        "two tests of the same data set, protocol and mode")
    ordered = sorted(sorted(after), key=lambda query: shown_precision(before[query]) - shown_precision(after[query]))
    count = min(arguments.queries, len(ordered))
    chosen = [ordered[int((number + 0.5) * len(ordered) / count)] for number in range(count)]
    root = Path(arguments.root)
    image = draw_lists([(name, decode_image(root / query, ADVICE),
                         [(decode_image(root / path, ADVICE), right) for path, right in lists[query]])
                        for query in chosen for name, lists in (("baseline CLIP", before), ("after training", after))],
                       in_group=2)
    write_atomically(arguments.picture, lambda file: image.quantize(256).save(file, "PNG", optimize=True))


def read_lists(path, ranks):
    """Read the lists of a file's first trial: {query: [(gallery image, whether it is right)]}.

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
    return lists


def shown_precision(found):
    """Average the precision at every right image of a list, 0 without one. Args: found: of `read_lists`."""
    ranks = [rank for rank, (_, right) in enumerate(found, 1) if right]
    return sum(number / rank for number, rank in enumerate(ranks, 1)) / max(len(ranks), 1)


if __name__ == "__main__":
    exit_on_user_error(main)
