"""Ranked lists: of which queries, their nearest images by a model and by the untrained one before it, and a picture.

test.py keeps the nearest images of every query, so that a later test can show the same queries before and after.
"""
import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from report.figures import map_figure
from report.run_files import BASELINE, CONTENT_FOLDER, read_run
from utils.checkpoint import write_atomically
from utils.seeding import numpy_rng

FILE = f"{CONTENT_FOLDER}/lists.npz"
NEAREST = 10            # images in a list
LISTS, PAIRS = 4, 2     # lists of each kind; of each kind before and after
PERFECT = 0.9995        # average precision that is shown as 100 %
KINDS = {"most": "gained most", "least": "gained least", "lost": "lost most", "worst": "worst", "random": "random"}
WIDTH, HEIGHT, FRAME, GAP, NAME_WIDTH = 64, 128, 4, 6, 170      # pixels of a drawn image, its frame, a row's name
STEP_X, STEP_Y = WIDTH + 2 * FRAME + GAP, HEIGHT + 2 * FRAME + GAP
COLOURS = {True: (30, 150, 60), False: (200, 40, 40), None: (120, 120, 120)}    # of right, wrong, and the query
TICK, CROSS = [((4, 11), (8, 15), (16, 5))], [((5, 5), (15, 15)), ((15, 5), (5, 15))]


def nearest_images(ranking):
    """Reduce a `processor.ranking.Ranking` to what lists show of each of its Q queries: a dict of arrays.

    "query" (Q,) and "gallery" (Q, 10) are positions in the test images, -1 where the protocol shows no more;
    "distance", "right" (Q, 10); "average_precision", "first" (Q,), the rank of the first right image, from 0.
    """
    near = np.s_[:, :NEAREST]
    hidden = np.arange(ranking.gallery.shape[1]) >= ranking.shown[:, None]
    return {"query": ranking.query, "gallery": np.where(hidden, -1, ranking.gallery)[near],
            "distance": ranking.distance[near], "right": ranking.match[near],
            "first": ranking.match.argmax(axis=1), "average_precision": ranking.average_precision}


def save_nearest(folder, rankings):
    """Write the `nearest_images` of a test's retrievals into its folder. Raises: UserError: as `write_atomically`."""
    arrays = {f"{ranking.evaluation.mode}/{name}": values for ranking in rankings
              for name, values in nearest_images(ranking).items()}
    write_atomically(Path(folder) / FILE, lambda file: np.savez_compressed(file, **arrays))


def baseline_lists(folder):
    """Read the lists of the untrained model, where it was tested as the run or the test in a folder was.

    Returns: protocol -> (name of the model, `nearest_images`).
    """
    found = {}
    for tested in read_run(folder).tests:
        path = tested.path / FILE
        if tested.of == BASELINE and not tested.differs and path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                start = f"{tested.record['mode']}/"
                found[tested.record["protocol"]] = tested.record["checkpoint"], {
                    name.removeprefix(start): stored[name] for name in stored.files if name.startswith(start)}
    return found


def query_lists(data, ranking, before, picture):
    """Show queries with their nearest images: [{"kind", "query", "before": a list or None, **a list}].

    A list is {"average_precision", "first_right": rank, "gallery": images}. Kinds are those of `chosen_queries`.

    Args: data: `DataSet`; ranking: `Ranking`; before: `nearest_images` of the untrained model, or None; picture:
        function of a modality and a position in its test images that keeps a picture and gives its name.
    """
    m, after = ranking.query_modality, nearest_images(ranking)

    def image(modality, position, **more):
        images = data.test[modality]
        return {"image": picture(modality, position), "person": int(images.persons[position]),
                "camera": int(images.cameras[position]), "path": images.paths[position], **more}

    def shown(lists, q):
        near = zip(lists["gallery"][q], lists["distance"][q], lists["right"][q])
        return {"average_precision": float(lists["average_precision"][q]), "first_right": int(lists["first"][q]) + 1,
                "gallery": [image(m.other, position, distance=float(distance), right=bool(right))
                            for position, distance, right in near if position >= 0]}

    chosen = chosen_queries(after["average_precision"], before and before["average_precision"],
                            data.test[m].persons[ranking.query])
    return [{"kind": kind, "query": image(m, ranking.query[q]), **shown(after, q),
             "before": before and shown(before, q)} for kind, queries in chosen.items() for q in queries]


def chosen_queries(after, before, persons):
    """Choose queries, of different persons in each kind: {kind of KINDS: their numbers}.

    Those that gained most and least average precision, and lost most; without the baseline, or a change, the worst and
    random ones. "least" and "random" leave out perfect ones, which say nothing.

    Args: after, before: (Q,) average precision of each query, NaN where nothing is right; before may be None; persons:
        (Q,).
    """
    def choose(order, wanted, most):
        by_person = {}
        for q in order:
            if wanted[q] and not np.isnan(after[q]):
                by_person.setdefault(persons[q], q)
        return list(by_person.values())[:most]

    if before is not None:
        gain, telling = after - before, np.minimum(after, before) < PERFECT
        order = np.argsort(gain, kind="stable")
        kinds = {"most": choose(np.argsort(-gain, kind="stable"), gain > 0, PAIRS),
                 "least": choose(order, telling & (gain >= 0), PAIRS), "lost": choose(order, gain < 0, PAIRS)}
        if any(kinds.values()):
            return kinds
    drawn = numpy_rng(0, "report lists").permutation(len(after))
    return {"worst": choose(np.argsort(after, kind="stable"), after >= 0, LISTS),
            "random": choose(drawn, after < PERFECT, LISTS)}


def drawn_lists(test, images):
    """Draw ranked lists of a page as one picture: queries at the left, their nearest images with a tick or a cross.

    Before and after training it shows one query of each kind, the untrained model's list above; else all queries.

    Args: test: of `report.content.retrieval_content`; images: its pictures by name.
    """
    rows, kinds = [], {}
    for entry in test["lists"]:
        kinds.setdefault(entry["kind"], []).append(entry)
    for kind, title in KINDS.items():
        for entry in kinds.get(kind, ())[:1 if test["before"] else None]:
            lists = [(f"{title},\n{test['before']}", entry["before"])] if test["before"] else []
            lists.append(("trained" if test["before"] else title, entry))
            rows += [(f"{name}:\n{100 * of['average_precision']:.0f} % precision", [(entry["query"], None), *(
                (image, image["right"]) for image in of["gallery"])]) for name, of in lists]
    sheet = Image.new("RGB", (NAME_WIDTH + max(len(row) for _, row in rows) * STEP_X + GAP, len(rows) * STEP_Y + GAP),
                      "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, row) in enumerate(rows):
        top = GAP + number * STEP_Y
        pen.text((GAP, top + HEIGHT // 3), name, fill="black", font=ImageFont.load_default(size=15))
        for column, (shown, right) in enumerate(row):
            left, image = NAME_WIDTH + column * STEP_X, Image.open(io.BytesIO(base64.b64decode(images[shown["image"]])))
            sheet.paste(ImageOps.expand(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), FRAME, COLOURS[right]),
                        (left, top))
            if right is not None:       # for those who see no colours
                pen.rectangle((left, top, left + 20, top + 20), fill=COLOURS[right])
                for stroke in TICK if right else CROSS:
                    pen.line([(left + x, top + y) for x, y in stroke], fill="white", width=3, joint="curve")
    return sheet


def pictures_of(content):
    """Draw what report_data/NAME.json shows of its first test: {"test_ranked_lists", "test_map"}, PIL images."""
    drawn_map = io.BytesIO()
    map_figure(content["map"]).savefig(drawn_map, format="png", dpi=120)
    return {"test_ranked_lists": drawn_lists(content["tests"][0], content["images"]),
            "test_map": Image.open(drawn_map).convert("RGB")}
