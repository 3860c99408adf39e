"""Draws ranked lists as one picture: queries at the left, their nearest gallery images with a tick or a cross."""
import base64
import io

from PIL import Image, ImageDraw, ImageFont, ImageOps

from report.figures import map_figure

WIDTH, HEIGHT, FRAME, GAP, MARK = 64, 128, 4, 6, 20     # pixels
STEP_X, STEP_Y = WIDTH + 2 * FRAME + GAP, HEIGHT + 2 * FRAME + GAP
NAME_WIDTH = 170                                # pixels, where rows are named
RIGHT, WRONG, NEUTRAL = (30, 150, 60), (200, 40, 40), (120, 120, 120)


def draw_lists(rows, in_group=1):
    """Draw ranked lists below one another.

    Args: rows: (name, PIL image of the query, [(PIL image of the gallery, whether it is right)]); in_group: rows that
        belong together, between which there is less room.
    """
    ranks = max(len(gallery) for _, _, gallery in rows)
    sheet = Image.new("RGB", (NAME_WIDTH + (ranks + 1) * STEP_X + 3 * GAP,
                              len(rows) * STEP_Y + len(rows) // in_group * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, query, gallery) in enumerate(rows):
        top = GAP + number * STEP_Y + number // in_group * GAP
        pen.text((GAP, top + STEP_Y // 2), name, fill="black", anchor="lm", font=ImageFont.load_default(size=15))
        sheet.paste(_framed(query, NEUTRAL), (NAME_WIDTH + GAP, top))
        for column, (image, right) in enumerate(gallery, 1):
            left = NAME_WIDTH + 3 * GAP + column * STEP_X
            sheet.paste(_framed(image, RIGHT if right else WRONG), (left, top))
            _mark(pen, left, top, right)
    return sheet


def _mark(pen, left, top, right):
    """Draw a tick or a cross into the upper left corner of an image, for those who see no colours."""
    pen.rectangle((left, top, left + MARK, top + MARK), fill=RIGHT if right else WRONG)
    strokes = [((4, 11), (8, 15), (16, 5))] if right else [((5, 5), (15, 15)), ((15, 5), (5, 15))]
    for stroke in strokes:
        pen.line([(left + x, top + y) for x, y in stroke], fill="white", width=3, joint="curve")


def _framed(image, colour):
    return ImageOps.expand(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), FRAME, colour)


def drawn_lists(test, images):
    """Draw the ranked lists that a page shows of a test, but for those of chosen persons: {kind: PIL image}.

    Args: test: of `report.content.retrieval_content`; images: its pictures by name.
    """
    def image(shown):
        return Image.open(io.BytesIO(base64.b64decode(images[shown["image"]])))

    kinds = {}
    for entry in test["lists"]:
        lists = [(f"{test['before']}, ", entry["before"])] * bool(entry["before"]) + [
            ("trained, " if entry["before"] else "", entry)]
        kinds.setdefault(entry["kind"], []).extend(
            (f"{name}{100 * of['average_precision']:.0f} % AP", image(entry["query"]),
             [(image(shown), shown["right"]) for shown in of["gallery"]]) for name, of in lists)
    return {kind: draw_lists(rows, 2 if test["before"] else 1) for kind, rows in kinds.items() if kind != "person"}


def pictures_of(content):
    """Draw what report_data/NAME.json shows of its first test: {"test_ranked_lists", "test_map"}, PIL images."""
    drawn, drawn_map = drawn_lists(content["tests"][0], content["images"]), io.BytesIO()
    sheet = Image.new("RGB", (max(part.width for part in drawn.values()), sum(part.height for part in drawn.values())))
    for number, part in enumerate(drawn.values()):
        sheet.paste(part, (0, sum(before.height for before in list(drawn.values())[:number])))
    map_figure(**content["map"]).savefig(drawn_map, format="png", dpi=120)
    return {"test_ranked_lists": sheet, "test_map": Image.open(drawn_map).convert("RGB")}
