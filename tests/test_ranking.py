"""Ranked lists on the page, as CSV and as a picture: their order by hand, and no image that the protocol hides."""
import csv
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import torch
from PIL import Image

from processor.metrics import rank_metrics
from processor.ranking import rank_trial, save_rankings
from report.content import retrieval_content
from utils.errors import UserError
from utils.modality import Modality

DEGREES = {Modality.IR: [0, 90, 0], Modality.RGB: [0, 60, 20, 30, 18]}      # direction of each image's feature
PERSONS = {Modality.IR: [1, 2, 9], Modality.RGB: [1, 2, 1, 2, 2]}
CAMERAS = {Modality.IR: [3, 6, 6], Modality.RGB: [2, 1, 1, 2, 4]}
# Query 0 is of camera 3 and does not see camera 2, that is images 0 and 3.
LISTS = [[4, 2, 1], [1, 3, 2, 4, 0], [0, 4, 2, 3, 1]]


class Images(SimpleNamespace):
    """Stands in for `ImageSet`."""

    def __len__(self):
        return len(self.paths)


@pytest.fixture
def tested():
    """Arguments of `retrieval_content` after the name: a SYSU-MM01 test of three queries and five gallery images."""
    sets = {m: Images(modality=m, persons=np.array(PERSONS[m]), cameras=np.array(CAMERAS[m]),
                        paths=tuple(f"{m.value}/{i}.png" for i in range(len(PERSONS[m])))) for m in Modality}
    angles = {m: np.radians(DEGREES[m]) for m in Modality}
    features = {m: (np.arange(len(a)), torch.from_numpy(np.stack([np.cos(a), np.sin(a)], 1)))
                for m, a in angles.items()}
    retrieval = SimpleNamespace(protocol="by hand", mode="all", rule="sysu", query_modality=Modality.IR,
                                query=np.arange(3), galleries=(np.arange(5),), trials=(0,))
    result = rank_metrics(1 - np.cos(angles[Modality.IR][:, None] - angles[Modality.RGB]), PERSONS[Modality.IR],
                          PERSONS[Modality.RGB], CAMERAS[Modality.IR], CAMERAS[Modality.RGB], "sysu")
    evaluation = SimpleNamespace(protocol="by hand", mode="all", per_trial=(result,), features=features, mean=dict,
                                 measure=None)
    data = SimpleNamespace(name="by hand", test=sets, sets=lambda: [("test", images) for images in sets.values()])
    banks = {m: SimpleNamespace(images=np.zeros((len(PERSONS[m]), 8, 4, 3), np.uint8)) for m in Modality}
    return data, banks, [retrieval], [evaluation]


def test_arrays(tested):
    data, _, (retrieval,), (evaluation,) = tested
    ranking = rank_trial(data, retrieval, evaluation)
    assert [row[:n].tolist() for row, n in zip(ranking.gallery, ranking.shown)] == LISTS
    assert (np.diff(ranking.distance, axis=1)[1:] > -1e-6).all()        # query 0's hidden images are near, and last
    assert ranking.match.astype(int).tolist() == [[0, 1, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(ranking.average_precision, [1 / 2, (1 + 1 + 3 / 4) / 3, np.nan])
    assert np.nanmean(ranking.average_precision) == pytest.approx(evaluation.per_trial[0].mAP)


def test_on_the_page(tested):
    content = retrieval_content("test", *tested)
    lists = {kind: [entry for entry in content["tests"][0]["lists"] if entry["kind"] == kind]
             for kind in ("best", "worst", "random")}
    for kind, queries in (("best", [1, 0]), ("worst", [0, 1])):     # query 2 has no match and is in no list
        assert [entry["query"]["path"] for entry in lists[kind]] == [f"ir/{q}.png" for q in queries]
    assert sorted(entry["query"]["path"] for entry in lists["random"]) == ["ir/0.png", "ir/1.png"]
    for entry in content["tests"][0]["lists"]:
        q = int(entry["query"]["path"][3])
        assert [image["path"] for image in entry["gallery"]] == [f"rgb/{i}.png" for i in LISTS[q]]
        assert [image["right"] for image in entry["gallery"]] == [PERSONS[Modality.RGB][i] == q + 1 for i in LISTS[q]]


def test_in_the_csv(tested, tmp_path):
    save_rankings(tmp_path, tested[0], *tested[2:])
    with open(tmp_path / "ranking_all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [[row["gallery"] for row in rows if row["query"] == f"ir/{q}.png"] for q in range(3)]
    assert found == [[f"rgb/{i}.png" for i in row] for row in LISTS]
    first = rows[3]
    assert first == {"trial": "0", "query": "ir/1.png", "query_person": "2", "query_camera": "6", "rank": "1",
                     "gallery": "rgb/1.png", "gallery_person": "2", "gallery_camera": "1",
                     "distance": f"{1 - np.cos(np.pi / 6):.6f}", "match": "1"}


def test_as_a_picture(tested, tmp_path):
    """The tool runs in any folder, and frames tell right from wrong."""
    save_rankings(tmp_path, tested[0], *tested[2:])
    for m in Modality:
        (tmp_path / m.value).mkdir()
        for i in range(len(PERSONS[m])):
            Image.new("RGB", (8, 16), "white").save(tmp_path / m.value / f"{i}.png")
    command = [sys.executable, str(scripts.REPOSITORY / "tools/dev/ranking_picture.py"), "ranking_all.csv", ".",
               "out.png", "--ranks", "2", "--queries", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    tool = scripts.load("tools/ranking_picture")
    with Image.open(tmp_path / "out.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    frames = [[pixels[tool.GAP + row * tool.STEP_Y + 1, 3 * tool.GAP + column * tool.STEP_X + 20]
               for column in (1, 2)] for row in range(3)]
    right = [[frame[1] > frame[0] for frame in row] for row in frames]      # greener than red
    assert right == [[False, True], [True, True], [False, False]]


def test_a_picture_of_two_tests(tmp_path, monkeypatch):
    """The baseline's row stands above, and its frames are its own."""
    tool = scripts.load("tools/ranking_picture")
    Image.new("RGB", (8, 16), "white").save(tmp_path / "q.png")
    Image.new("RGB", (8, 16), "white").save(tmp_path / "g.png")
    for name, match in (("ours", 1), ("baseline", 0)):
        (tmp_path / f"{name}.csv").write_text(f"trial,query,rank,gallery,match\n0,q.png,1,g.png,{match}\n")
    (tmp_path / "other.csv").write_text("trial,query,rank,gallery,match\n0,g.png,1,g.png,1\n")
    monkeypatch.chdir(tmp_path)
    assert scripts.call(tool, ["ours.csv", ".", "out.png", "--ranks", "1", "--baseline", "baseline.csv"]) == 0
    with Image.open("out.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    column = tool.NAME_WIDTH + 3 * tool.GAP + tool.STEP_X + 20
    above, below = (pixels[tool.GAP + row * tool.STEP_Y + 1, column] for row in (0, 1))
    assert above[0] > above[1] and below[1] > below[0]
    assert (pixels[:tool.STEP_Y, :tool.NAME_WIDTH] < 100).any() and (pixels[tool.STEP_Y:, :tool.NAME_WIDTH] < 100).any()
    assert scripts.call(tool, ["ours.csv", ".", "out.png", "--baseline", "other.csv"]) == 2
    assert tool.shown_precision([("a", True), ("b", False), ("c", True)]) == (1 + 2 / 3) / 2
    assert tool.shown_precision([("a", False)]) == 0


def test_queries_from_the_greatest_gain_to_the_greatest_loss(tmp_path, monkeypatch):
    tool, drawn = scripts.load("tools/ranking_picture"), []
    head, gains = "trial,query,rank,gallery,match\n", {"a": (0, 1), "b": (1, 0), "c": (1, 1), "d": (0, 1), "e": (1, 0)}
    for index, name in enumerate(("baseline", "ours")):
        (tmp_path / f"{name}.csv").write_text(head + "".join(
            f"0,{query},1,g,{pair[index]}\n" for query, pair in gains.items()))
    monkeypatch.setattr(tool, "draw", lambda rows, *rest: drawn.extend(rows) or Image.new("RGB", (1, 1)))
    monkeypatch.chdir(tmp_path)
    assert scripts.call(tool, ["ours.csv", ".", "out.png", "--baseline", "baseline.csv", "--queries", "3"]) == 0
    assert [query for name, query, _ in drawn if name == "baseline CLIP"] == ["a", "c", "e"]


@pytest.mark.parametrize("words, message", [
    (["none.csv", ".", "out.png"], "ranking none.csv cannot be read"), (["all.csv"], "not understood"),
    (["all.csv", ".", "out.png"], "image q.png is missing; expected an image of the ranking"),
    (["all.csv", ".", "x", "--ranks", "0"], "from 1 to 100")])
def test_mistakes_of_the_picture_are_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "all.csv").write_text("trial,query,rank,gallery,match\n0,q.png,1,g.png,1\n")
    monkeypatch.chdir(tmp_path)
    assert scripts.call(scripts.load("tools/ranking_picture"), words) == 2
    found = capsys.readouterr().err
    assert message in found and found.count("\n") == 1 and not (tmp_path / "out.png").exists()


def test_pictures_of_no_lists(tmp_path):
    tool = scripts.load("tools/ranking_picture")
    for text in ("", "trial,query\n1,2\n", "trial,query,rank,gallery,match\n0,a,first,b,1\n"):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(UserError, match="expected ranking_MODE.csv"):
            tool.read_lists(tmp_path / "bad.csv", 3)
