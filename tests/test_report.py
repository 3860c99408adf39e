"""The page of a run, and that of several: everything is on it, nothing is fetched, and no number is another's."""
import html
import json
import logging
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import torch
import trees
import yaml
from PIL import Image

from processor.evaluate import rank_features, rank_trial
from report import __main__ as command
from report.compare import write_comparison_page
from report.content import retrieval_content, stage_content
from report.curves import comparison_charts, stage_charts
from report.figures import Chart, Line, chart_figure
from report.lists import STEP_Y, drawn_lists
from report.page import Figures
from report.paired import group_runs
from report.ranked import nearest_images, query_lists
from report.results import NUMBERS, Result, cells, compared_tables, find_results
from report.run_files import read_run
from report.write import save_report, write_run_page
from tests.tested import add_test
from tests.tiny import IMAGES, PEOPLE, tiny_banks, tiny_data
from utils.errors import UserError
from utils.modality import Modality

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = (Path(__file__).parent / "report_probe.html").read_text()     # its findings are its title


def make_run(folder, seed):
    """Write a run's folder as the stages leave it but for its page, with random features: data, rankings, evaluations.

    The losses have names that no method of ours has.
    """
    rng, data, banks = np.random.default_rng(seed), tiny_data(), tiny_banks()
    looks = rng.normal(size=(PEOPLE, 8)).repeat(IMAGES // PEOPLE, 0)
    features = {m: (np.arange(IMAGES), torch.nn.functional.normalize(torch.from_numpy(
        looks + rng.normal(size=(IMAGES, 8))).float(), dim=1)) for m in Modality}
    evaluations = [rank_features(data, retrieval, features) for retrieval in retrievals(data)]
    rankings = [rank_trial(data, *tested) for tested in zip(retrievals(data), evaluations)]
    labels = {m: np.where(rng.random(IMAGES) < 0.2, -1, np.arange(IMAGES) // 6) for m in Modality}
    links = np.arange(PEOPLE), np.roll(np.arange(PEOPLE), seed), rng.random(PEOPLE)
    (folder / "report_data").mkdir(parents=True)
    folder.joinpath("config.yml").write_text(yaml.safe_dump({
        "SEED": seed, "DATASET": {"NAME": "tiny"}, "CLUSTER": {"K1": 20 + seed}, "METHOD": {"CROSS_EPOCH": 2}}))
    folder.joinpath("report_data/run-train_clip.json").write_text(json.dumps({
        "method": "Method", "command": "python train_clip.py SEED 1", "started": "2026-01-02T03:04:05+00:00",
        "commit": "abc1234", "versions": {"torch": "9.9"}, "hardware": "A machine"}))
    rows = [{"stage": stage, "epoch": epoch, "loss_rgb": 2 / epoch, "loss_ir": 3 / epoch, "loss_my_own": 1 / epoch,
             "clusters_rgb": 6, "clusters_ir": 7, "clusters_per_person_rgb": 1.2, "links": 5, "link_similarity": 0.5,
             "ari_rgb": 0.5, "ari_ir": 0.6, "link_accuracy": 0.1 * epoch, "lr": 1e-4,
             "seconds": 30.0, "test": a_record(0.1 * epoch * seed)}
            for stage in ("prepare", "finetune") for epoch in (1, 2, 3)]
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    add_test(folder, 0.04, "baseline", epoch=0, record=a_record(0.04))
    add_test(folder, 0.3 * seed, record=a_record(0.3 * seed))
    content = stage_content(data, banks, rankings[0], banks, labels, links)
    folder.joinpath("report_data/finetune.json").write_text(json.dumps(content))
    return data, rankings, evaluations


def a_record(number):
    """A record of metrics.json whose numbers are all one, spread by 0.01 over two trials."""
    trials = [{k: number + sign * 0.01 for k in NUMBERS} for sign in (1, -1)]
    return {"protocol": "tiny", **{k: number for k in NUMBERS}, "per_trial": trials,
            "cmc": [min(1.0, number + 0.01 * rank) for rank in range(20)]}


def retrievals(data):
    return [data.retrieval("v2t"), data.retrieval("t2v")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs' folders; of the first its data, rankings, evaluations."""
    folder = tmp_path_factory.mktemp("runs")
    data, rankings, evaluations = make_run(folder / "first", 1)
    make_run(folder / "second", 2)
    before = {ranking.evaluation.protocol: ("baseline CLIP", {**nearest_images(ranking), "average_precision":
              np.random.default_rng(2).random(IMAGES)}) for ranking in rankings}
    save_report(folder / "first", logging.getLogger("test"), "test",
                lambda: retrieval_content(data, tiny_banks(), rankings, before))
    write_comparison_page([folder / "first", folder / "second"])
    return folder, data, rankings, evaluations


def test_page_holds_everything_and_fetches_nothing(runs):
    text = (runs[0] / "first/report.html").read_text()
    for words in ("tiny v2t", "tiny t2v", "Gained most", "Lost most", "<b>baseline CLIP</b>", "<b>after training</b>",
                  "Most impure clusters", "Linked clusters", "different persons", "wrong ones first",
                  "Outliers, infrared", "Test embeddings", "CMC", "Learning rate", "modalities meet",
                  "Distances, visible to infrared", "camera 1: 30", "DATASET.NAME", "Choose a person",
                  "first right image at rank", "seed 0, perplexity", "epoch 0: before training",
                  "diagnosis by known identities", "1.0e-04", "abc1234", "A machine", "torch 9.9", "2026-01-02 03:04",
                  "python train_clip.py SEED 1", "3 min 0 s", "Method"):
        assert words in text, words
    sections = re.findall(r'<section id="(.*?)"', text)
    assert sections == ["results", "lists", "map", "clusters", "training", "details", "run"]
    assert text.count("<h2>") == len(sections) and text.index("<h2>Results") < text.index("torch 9.9")
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?://|url\((?!#)|@import|src=\"(?!data:)", outside)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert "#1d2127" not in text.replace("--ink:#1d2127", "")      # figures take the page's colours


def test_every_loss_is_drawn_whatever_its_name(runs):
    """One chart of a stage holds all of them; the comparison has one of each."""
    rows = read_run(runs[0] / "first").epochs
    charts = {chart.name: chart for chart in stage_charts(rows, "prepare", False, 2)}
    assert [(line.label, line.y[0]) for line in charts["prepare_loss"].lines] == [
        ("visible", 2), ("infrared", 3), ("my own", 1)]
    assert charts["prepare_loss"].mark == (2, "modalities meet") and charts["prepare_ari"].lines[1].y == [0.6] * 3
    assert not any(chart.mark for chart in stage_charts(rows, "prepare", False, 4))      # not yet
    prompts = [{"stage": "prompt", "epoch": epoch, "loss": 0.5} for epoch in (1, 2)]
    assert [(chart.title, chart.lines[0].y) for chart in stage_charts(prompts, "prompt", False)] == [
        ("Losses, prompts", [0.5, 0.5])]
    assert stage_charts(prompts[:1], "prompt", False) == []     # one point is no curve
    flat = [{**row, "link_similarity": 1.0, "clusters_rgb": 1} for row in rows]
    charts = {chart.name: chart for chart in stage_charts(flat, "prepare", False)}
    assert "prepare_link_similarity" not in charts and charts["prepare_clusters"].lines[0].y == [1, 1, 1]
    compared = {chart.name: chart.title for chart in comparison_charts({"a": [rows], "b": [rows]}, "prepare", False)}
    assert compared["prepare_loss_my_own"] == "Losses, my own"


def test_a_stage_without_links_or_identities(runs):
    """Nothing is called linked, right or wrong."""
    labels = {m: np.arange(IMAGES) // 6 for m in Modality}
    data, banks = tiny_data(np.zeros(IMAGES, int)), tiny_banks()
    ranking = rank_trial(data, retrievals(data)[0], runs[3][0])
    found = stage_content(data, banks, ranking, banks, labels, None)["clusters"]
    assert found["links"] == [] and not found["known"] and "right" not in json.dumps(found)


def test_a_run_ends_with_its_page(tmp_path, tiny_clip_file):
    """The scripts themselves, with nothing left out; the page holds what each of them was to add."""
    run = tmp_path / "run"
    words = scripts.settings(DATASET__ROOT=trees.people_tree(tmp_path / "data"), MODEL__CLIP_WEIGHTS=tiny_clip_file)
    for script in ("train_prepare", "train_clip"):
        assert scripts.call(scripts.load(script), [*words, "OUTPUT_DIR", run]) == 0
    words = ["--resume_path", run / "model_last.pth", "OUTPUT_DIR", tmp_path / "not", "TEST.TRIALS", "2", "TEST.MODE",
             "both"]
    assert scripts.call(scripts.load("test"), words) == 0
    metrics = torch.load(run / "model_last.pth", weights_only=True)["metrics"]
    for folder, pages in ((run, 2), (next(run.glob("tests/model_last-*")), 1)):
        log, text = ((folder / name).read_text() for name in ("log.txt", "report.html"))
        assert all(len(line) <= 100 or str(tmp_path) in line for line in log.splitlines())
        log = " ".join(log.split())
        assert log.count("report: ") == pages and "warning: the report" not in log
        assert text.count("<dt>Hardware</dt>") == 1 and text.count("<b>baseline CLIP</b>") > 4
        for mode in ("all", "indoor"):
            rows = rows_of(text, f"<h3>SYSU-MM01 {mode}-search single-shot, Python seeds 0-1; ")
            assert [row[0].partition(" ± ")[0] for row in rows if "published" not in row[0]] == [
                "baseline CLIP", *(["train_prepare.py, epoch 1"] if mode == "all" and folder == run else []),
                "train_clip.py, epoch 1"]
        assert ("<h4>Largest clusters, visible</h4>" in text) == (folder == run)
        assert f"{100 * metrics['mAP']:.1f}" in text and metrics["protocol"] in text
    [events] = run.glob("tensorboard/finetune/*")
    assert all(tag in events.read_bytes() for tag in (b"test/ranked_lists", b"test/map", b"loss/i2t_rgb"))
    assert f"and of its run: {run / 'report.html'}" in log and not (tmp_path / "not").exists()


ATTACK = """_$x_{$</title></script><script>alert(1)</script>"><img src=x onerror='alert("2")'>"""


def attacked(value):
    """The same content with every text replaced, but for what the page chooses by: stages, modalities, pictures."""
    if isinstance(value, dict):
        return {key: attacked(v) if key not in ("stage", "modality", "modalities", "query_modality", "images", "image",
                                                "jpeg", "kind", "tiles") else v for key, v in value.items()}
    return [attacked(v) for v in value] if isinstance(value, list) else ATTACK if isinstance(value, str) else value


def test_everything_from_files_is_text(runs, tmp_path):
    """Settings, protocols, paths, checkpoints, losses and folders that hold tags and quotes stay text.

    The name is also one that matplotlib would read as a formula, and as that of no line.
    """
    folder = tmp_path / ATTACK.replace("/", "")
    shutil.copytree(runs[0] / "first", folder)
    (folder / "config.yml").write_text(yaml.safe_dump({"SEED": 1, "DATASET": {"NAME": ATTACK}, ATTACK: [ATTACK]}))
    rows = [{**attacked(json.loads(line)), f"loss_{ATTACK}": 1}
            for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in folder.glob("report_data/*.json"):
        path.write_text(json.dumps(attacked(json.loads(path.read_text()))))
    add_test(folder, 0.5, ATTACK.replace("/", ""), protocol=ATTACK)
    for path in (write_run_page(folder, tmp_path / "figures", only=["loss", "lists_"]),
                 write_comparison_page([folder, runs[0] / "first"], tmp_path / "comparison.html")):
        found = Tags()
        found.feed(path.read_text())
        assert found.scripts == 1 and found.handlers == [] and found.text.count("_$x_{$</title></script><script>") > 5
        assert all(source.startswith("data:image/jpeg;base64,") for source in found.sources)
    written = list((tmp_path / "figures").iterdir())
    assert {path.suffix for path in written} == {".png", ".pdf"} and any("lists_" in path.name for path in written)


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self):
        super().__init__()
        self.scripts, self.handlers, self.sources, self.text = 0, [], [], ""

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.sources += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        self.text += data


def test_figures_as_files(tmp_path, monkeypatch, capsys):
    """The command writes page and figures of a run that has had two epochs so far."""
    def report(*words):
        monkeypatch.setattr("sys.argv", ["report", str(tmp_path), *words])
        command.main()
        return sorted(path.name for path in figures.glob("*"))

    figures = tmp_path / "figures"
    tmp_path.joinpath("metrics.jsonl").write_text("".join(
        f'{{"stage": "prepare", "epoch": {epoch}, "loss_rgb": 3.5, "lr": 1e-4}}\n' for epoch in (1, 2)))
    assert report("--figures", str(figures), "--only", "lr") == ["prepare_lr.pdf", "prepare_lr.png"]
    capsys.readouterr()
    assert len(report("--figures", str(figures))) == 4
    assert capsys.readouterr().out == f"written to {tmp_path / 'report.html'}\nfigures written to {figures}\n"
    assert (figures / "prepare_loss.png").read_bytes().startswith(b"\x89PNG")
    assert (figures / "prepare_lr.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="prepare_loss, prepare_lr"):
        report("--only", "cmc", "--figures", "x")
    for words in (["--only", "lr"], ["--no_titles"]):
        with pytest.raises(UserError, match="--figures"):
            report(*words)


def test_figures_of_ranked_lists_and_without_titles(runs, tmp_path):
    """Two rows for each query, the baseline's above; without its title a figure is lower."""
    content, heights = json.loads((runs[0] / "first/report_data/test.json").read_text()), []
    drawn = drawn_lists(content["tests"][0], content["images"])
    assert list(drawn) == ["most", "least", "lost"] and 4 * STEP_Y < drawn["most"].height < 5 * STEP_Y
    figures = Figures()
    figures.add("cmc", chart_figure(Chart("x", "T", (Line("a", [1, 2], [3, 4], "#2563c9"),), "unit")))
    figures.by_name["lists"] = drawn["lost"]
    for titles in (True, False):
        figures.save(tmp_path, (), titles)
        with Image.open(tmp_path / "cmc.png") as image:
            heights.append(image.height)
    assert heights[1] < heights[0] - 50
    assert {path.name for path in tmp_path.iterdir()} == {"cmc.png", "cmc.pdf", "lists.png", "lists.pdf"}


def rows_of(text, heading):
    """The rows of the first table after a heading: [[text of each cell]]."""
    table = text[text.index(heading):].partition("</table>")[0]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
            for row in table.split("<tr")[2:]]


def test_results_and_settings_are_rows(runs):
    """Baseline, prepare, finetune, each once; what test.py tested again is not said twice. Differences come first."""
    text = (runs[0] / "first/report.html").read_text()
    over, rows = " ± over 2 trials of one test", rows_of(text, "Small numbers below")
    assert [row[:2] for row in rows] == [
        ["baseline CLIP" + over, "4.0 ± 1.4"], ["train_prepare.py, epoch 3" + over, "30.0 ± 1.4 +26.0"],
        ["train_clip.py, epoch 3" + over, "30.0 ± 1.4 +26.0"]]
    assert "+26.0 over baseline CLIP" in text and "the gain over baseline CLIP" in text
    assert "<dt>CLUSTER.K1</dt><dd>21 <span>default 30</span></dd>" in text
    assert ["CLUSTER.K1", "21"] in rows_of(text, "All settings")


def test_best_epochs_and_other_tests_have_rows_of_their_own(runs, tmp_path):
    shutil.copytree(runs[0] / "first", tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-2]["test"] = a_record(0.02)
    rows[-3]["test"] = a_record(0.9)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for of, number, epoch, settings in (("own_tool", 0.01, 9, {}), ("model_last", 0.05, 3, {"PRECISION": "bf16"})):
        add_test(tmp_path / "run", number, of, epoch=epoch, record=a_record(number), **settings)
    add_test(tmp_path / "run", 0.8, "prepare_last", record=a_record(0.8), mode="v2t")
    (tmp_path / "run/prepare_last.pth").write_text("trained again since")
    text = write_run_page(tmp_path / "run").read_text()
    found = rows_of(text, "Small numbers below")
    assert "train_clip.py, epoch 3; tiny" in text       # what the page begins with
    assert [[row[0].partition(" ± ")[0], row[1]] for row in found[2:]] == [
        ["train_clip.py, epoch 3", "30.0 ± 1.4 +26.0"],
        ["train_clip.py, epoch 3, PRECISION bf16", "5.0 ± 1.4 +1.0"],
        ["train_clip.py, epoch 1, best Rank-1 on test data", "90.0 ± 1.4 +86.0"],
        ["test.py: own_tool.pth", "1.0 ± 1.4 −3.0"]]


def test_lists_reach_the_first_right_image(runs):
    """It is shown with its rank where it is not among the ten."""
    for test in json.loads((runs[0] / "first/report_data/test.json").read_text())["tests"]:
        for entry in test["lists"]:
            for of in (entry, entry["before"]):
                marks = [image["right"] for image in of["gallery"]]
                assert of["first_right"] == marks.index(True) + 1 if any(marks) else of["behind"]["right"]
                assert any(marks) == (of["behind"] is None)
        chosen = [entry["query"]["person"] for entry in test["lists"] if entry["kind"] == "person"]
        assert chosen == sorted(set(chosen)) and len(chosen) == PEOPLE


def test_queries_are_those_that_gained_most_least_and_lost_most(runs):
    """Each before and after; without the untrained model, or a change, those that were found worst."""
    data, rankings, _ = runs[1:]
    ranking, pictures = rankings[0], SimpleNamespace(add=lambda *image: "")
    untrained = nearest_images(ranking)
    for gains, kinds in (([0.3, 0.1, 0, -0.2, -0.1], {"most": [0, 1], "least": [2, 1], "lost": [3, 4]}),
                         ([0] * 5, {"least": [0, 1]}), (None, {"worst": [0, 1, 2, 3]})):
        before = dict(untrained, average_precision=np.repeat(
            np.linspace(0.5, 0.9, PEOPLE) - (gains or [0]), IMAGES // PEOPLE)) if gains else None
        now = replace(ranking)
        now.__dict__["average_precision"] = np.repeat(np.linspace(0.5, 0.9, PEOPLE), IMAGES // PEOPLE)
        found = {}
        for entry in query_lists(data, now, before, pictures):
            found.setdefault(entry["kind"], []).append(entry)
        assert "person" in found and all((entry["before"] is None) == (gains is None) for entry in found["person"])
        for kind, persons in kinds.items():
            assert [entry["query"]["person"] for entry in found[kind]] == persons, kind


def test_published_logs_and_figures_stand_beside_a_run(tmp_path):
    """Those of its data set and method; with other people in the layout there are none."""
    [folder] = runs_of(tmp_path, [(0.1, 0.2, 0.3)], DATASET={"NAME": "sysu"})
    rows = [{**json.loads(line), "clusters_rgb": 1420, "clusters_ir": 430}
            for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["test"] |= {"protocol": "SYSU-MM01 all-search single-shot, Python seeds 0-9", "mode": "all"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report_data").mkdir()
    (folder / "report_data/run-train_prepare.json").write_text(json.dumps({"method": "cclnet", "command": ""}))
    text = write_run_page(folder).read_text()
    assert ["published, CCLNet, CLIP RN50, train_clip, best on test", "55.3", "–"] in [
        row[:3] for row in rows_of(text, "Percent. ")]
    assert "1,420 visible clusters in the first epoch; published runs of other methods have 687 to 898." in text
    assert "430 infrared" not in text and 'data-name="SDCL"' in text
    charts = {chart.name: chart for chart in stage_charts(rows, "prepare", False, dataset="sysu")}
    thin = {line.label: line for line in charts["prepare_clusters"].lines if line.width < 1}
    assert list(thin) == [f"{name}{of}" for name in ("PGM", "RPNR, second half", "SDCL") for of in ("", ", infrared")]
    assert thin["PGM"].x == (1, 2, 3) and thin["PGM"].y == (898, 914, 892)
    assert [line.label for line in charts["prepare_test"].lines][3:] == ["RPNR, second half", "SDCL"]
    config = yaml.safe_load((folder / "config.yml").read_text())
    config["DATASET"]["CHECK_COUNTS"] = False
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    text = write_run_page(folder).read_text()
    assert "published," not in text and "published runs" not in text and 'data-name="SDCL"' not in text


def test_a_gain_that_is_shown_as_nothing_has_no_colour():
    one, other = (Result("finetune", "", "", dict.fromkeys(NUMBERS, number), {}) for number in (0.50004, 0.5))
    assert {(cell["gain"], cell["sign"]) for pair in ((one, other), (other, one)) for cell in cells(*pair)} == {
        ("+0.0", 0)}
    assert cells(replace(one, numbers=dict.fromkeys(NUMBERS, 0.499)), other)[0]["sign"] == -1


def test_comparison(runs):
    text = (runs[0] / "first/comparison.html").read_text()
    assert "Comparison of 2 runs" in text
    assert [row[0] for row in rows_of(text, "Settings that differ</h2>")] == ["CLUSTER.K1", "SEED"]
    first, second = "cclnet, CLUSTER.K1 21 (n = 1)", "cclnet, CLUSTER.K1 22 (n = 1)"
    assert rows_of(text, "<h3>train_clip.py: tiny")[1][:2] == [f"{second} ± over 2 trials of one test",
                                                              "60.0 ± 1.4 +30.0"]
    assert text.count(f'data-name="{first}"') == text.count(f'data-name="{second}"') > 20
    assert f"{second} is not compared: " in text and "holds no per_query.npz, and one run alone tells nothing" in text


def runs_of(folder, values, **settings):
    """Folders of runs with seeds 1, 2, ...: their Rank-1 after epochs 1 and 2."""
    folders = []
    for seed, pair in enumerate(values, start=1):
        path = folder / f"seed{seed}"
        path.mkdir(parents=True)
        (path / "config.yml").write_text(yaml.safe_dump({"SEED": seed, "OUTPUT_DIR": str(path), **settings}))
        (path / "metrics.jsonl").write_text("".join(json.dumps(
            {"stage": "prepare", "epoch": epoch, "lr": 1e-4, "test": {"protocol": "p", **{k: value for k in NUMBERS}}}
        ) + "\n" for epoch, value in enumerate(pair, start=1)))
        folders.append(path)
    return folders


def groups_of(folders):
    return group_runs([read_run(folder) for folder in folders])


def test_runs_that_differ_in_their_seed_alone_belong_together(tmp_path):
    """A key that a run does not name has its default; of equal runs in two folders each is of its folder's group."""
    a = runs_of(tmp_path / "a", [(0.1, 0.4), (0.3, 0.6)], CLUSTER={"K1": 30})
    b = runs_of(tmp_path / "b", [(0.2, 0.6)] * 3)[2:]       # K1 is 30 by default
    c = runs_of(tmp_path / "c", [(0.2, 0.6)], CLUSTER={"K1": 25})
    def found(*folders):
        return {name: len(group) for name, group in groups_of(folders).items()}

    assert found(*a, *b, *c) == {"cclnet, CLUSTER.K1 30": 3, "cclnet, CLUSTER.K1 25": 1}
    shutil.copytree(tmp_path / "a", tmp_path / "changed")
    assert found(*a, tmp_path / "changed/seed1", *b) == {"cclnet, a": 2, "cclnet, changed": 1, "cclnet, b": 1}
    shutil.copytree(a[0], tmp_path / "a/copy")
    with pytest.raises(UserError, match="seed1 and .*copy are runs of the same settings, seed and data"):
        groups_of([*a, tmp_path / "a/copy"])
    for folder in a:
        (folder / "config.yml").unlink()                    # settings that are not known are not the same
    assert found(*a) == {"seed1": 1, "seed2": 1}


def test_seeds_are_averaged_and_compared_with_the_first_method(tmp_path):
    folders = [*runs_of(tmp_path / "a", [(0.1, 0.4), (0.3, 0.6)], CLUSTER={"K1": 30}),
               *runs_of(tmp_path / "b", [(0.2, 0.65)], CLUSTER={"K1": 25})]
    first, second = "cclnet, CLUSTER.K1 30 (n = 2)", "cclnet, CLUSTER.K1 25 (n = 1)"
    groups = dict(zip((first, second), groups_of(folders).values()))
    (table,) = compared_tables({label: [find_results(run) for run in group] for label, group in groups.items()})
    assert [[row["name"], *(row["cells"][0][key] for key in ("value", "spread", "gain"))] for row in table["rows"]] == [
        [first, "50.0", "± 14.1", ""], [second, "65.0", "", "+15.0"]]
    epoch_0 = {"stage": "prepare", "epoch": 0, "test": {"protocol": "p", **{k: 0.05 for k in NUMBERS}}}
    rows = {label: [run.epochs for run in group] for label, group in groups.items()}
    rows[first] = [[epoch_0, *epochs] for epochs in rows[first]]
    chart = next(chart for chart in comparison_charts(rows, "prepare", False) if chart.name == "prepare_test_rank1")
    one, other = chart.lines
    assert (one.x, one.label, other.label) == ([0, 1, 2], first, second) and "epoch 0" in chart.note
    np.testing.assert_allclose((one.y, one.spread), ([5, 20, 50], [0, *[200 ** 0.5] * 2]))
    assert (other.x, other.y, other.spread) == ([1, 2], pytest.approx([20, 65]), ())
    band = chart_figure(chart).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((5, 50 + 200 ** 0.5))
    text = write_comparison_page(folders, tmp_path / "page.html").read_text()
    assert [row[:2] for row in rows_of(text, "<h3>train_prepare.py: p")] == [
        [first + " ± over 2 runs", "50.0 ± 14.1"], [second, "65.0 +15.0"]] and f"the difference to {first}" in text


def test_charts_say_where_their_axis_begins():
    for values, zero, marked in (((1, 10), True, False), ((9, 10), False, True), ((-1, 10), False, False),
                                 ((5, 5), True, False)):
        figure = chart_figure(Chart("x", "T", (Line("a", [1, 2], values, "#2563c9"),), "unit", mark=(2, "mark")))
        assert (figure.axes[0].get_ylim()[0] == 0) == zero
        assert any("does not begin at 0" in text.get_text() for text in figure.texts) == marked
    point = figure.hover["lines"][0]["points"][1]
    x, y = figure.axes[0].transData.transform((2, 5)) * 72 / figure.dpi
    assert point == [pytest.approx(x, abs=0.1), pytest.approx(2.4 * 72 - y, abs=0.1), "2", "5"]


def test_a_pipe_in_a_runs_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="metrics.jsonl is no file"):
        read_run(tmp_path)


def test_a_report_never_stops_a_run(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        save_report(tmp_path, logging.getLogger("test"), "model", lambda: 1 / 0)
    assert "the report could not be written (ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("name, content", [("metrics.jsonl", "{broken"), ("report_data/test.json", "["), (None, None)])
def test_folders_without_a_sound_run(tmp_path, name, content):
    if name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="cannot be read" if name else "holds no run"):
        write_run_page(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        write_run_page(tmp_path / "elsewhere")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name, width", [("report", 390), ("report", 1400), ("comparison", 390), ("comparison", 1400)])
def test_in_a_browser(runs, tmp_path, name, width, theme):
    """Nothing overlaps, sticks out or is fetched, everything is drawn, and the pointer finds values and images."""
    text = (runs[0] / f"first/{name}.html").read_text()
    page = tmp_path / "probe.html"
    nav = "nav .menu" if width == 390 else "nav .wide a"
    for old, new in (("WIDTH", str(width)), ("THEME", theme), ("NAV", json.dumps(nav)),
                     ("PAGE", json.dumps(text).replace("</", "<\\/"))):
        page.write_text((page.read_text() if page.exists() else PROBE).replace(old, new, 1))
    result = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000",
                             "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                             "--virtual-time-budget=20000", page.as_uri()], capture_output=True, text=True, timeout=240)
    found = json.loads(html.unescape(re.search(r"<title>(\{.*?\})</title>", result.stdout).group(1)))
    assert found["errors"] == found["fetched"] == found["overlaps"] == found["outside"] == []
    assert ":CONSOLE" not in result.stderr
    assert found["pictures"] == found["seen"] == text.count("<img ")
    assert found["charts"] == found["drawn"] == text.count("<svg ") and found["charts"] > 15
    assert found["curves"] >= found["charts"] and found["wide"] <= 0 and found["hidden"] == 0
    assert width == 390 or found["height"] <= 6000
    assert found["nav"] == (1 if width == 390 else text.count("<section "))
    assert (found["colours"][0] == "#1d2127") == (theme == "light")
    for closed, said, _, rules, value, label in found["hover"]:
        assert closed and value in said and label in said and rules == 1
    for closed, said, pictures, _, label in found["map"]:
        assert closed and said == label and pictures == 1
    assert all(closed and pictures == 1 for closed, _, pictures, _ in found["larger"])
    assert name == "comparison" or (len(found["map"]) == 1 and len(found["larger"]) == 5)
