"""What stands on a page: curves, ranked lists, clusters, results, and no number that is another's."""
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from processor.evaluate import rank_features, rank_trial
from report import __main__ as command
from report.content import retrieval_content, stage_content
from report.curves import comparison_charts, stage_charts
from report.lists import STEP_Y, chosen_queries, drawn_lists, nearest_images
from report.results import NUMBERS, averaged, compared_tables, find_results, main_result, result_tables
from report.run_files import read_run
from report.write import write_run_page
from tests.tested import add_test, runs_of
from tests.tiny import IMAGES, PEOPLE, tiny_banks, tiny_data
from utils.errors import UserError
from utils.modality import Modality


def test_every_loss_is_drawn_whatever_its_name():
    """One chart of a stage holds all of them; the comparison has one of each. What says nothing has no curve."""
    rows = [{"stage": "finetune", "epoch": epoch, "loss_rgb": 2 / epoch, "loss_ir": 3 / epoch, "loss_my_own": 1 / epoch,
             "link_similarity": 1.0} for epoch in (1, 2, 3)]
    charts = {chart.name: chart for chart in stage_charts(rows, "finetune", 2)}
    assert [(line.label, line.y[0]) for line in charts["finetune_loss"].lines] == [
        ("visible", 2), ("infrared", 3), ("my own", 1)]
    assert "finetune_link_similarity" not in charts
    prompts = [{"stage": "prompt", "epoch": epoch, "loss": 0.5} for epoch in (1, 2)]
    assert [(chart.title, chart.lines[0].y) for chart in stage_charts(prompts, "prompt")] == [
        ("Losses, prompts", [0.5, 0.5])]
    assert stage_charts(prompts[:1], "prompt") == []     # one point is no curve


def test_figures_as_files(tmp_path, monkeypatch, capsys):
    """Page and figures of a run that has had two epochs so far; without titles they are lower."""
    [folder] = runs_of(tmp_path, [(0.1, 0.2)])
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--figures", str(tmp_path / "figures"), "--no_titles"])
    command.main()
    with Image.open(tmp_path / "figures/prepare_lr.png") as image:
        assert image.height < 2.4 * 200 - 50
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("cmc_1", "prepare_test", "prepare_loss", "prepare_lr") for kind in ("png", "pdf")}
    assert (tmp_path / "figures/cmc_1.pdf").read_bytes().startswith(b"%PDF")
    assert f"written to {folder}/report.html\nfigures written to {tmp_path}/figures\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tested():
    """A test of the tiny data with random features: data, `Ranking`."""
    rng, data = np.random.default_rng(1), tiny_data()
    features = {m: (np.arange(IMAGES), torch.nn.functional.normalize(torch.from_numpy(
        rng.normal(size=(IMAGES, 8))).float(), dim=1)) for m in Modality}
    return data, rank_trial(data, data.retrieval("v2t"), rank_features(data, data.retrieval("v2t"), features))


def test_lists_before_and_after_as_they_are_shown_and_drawn(tested):
    """The rank of the first right image is told where it is not among the ten; the baseline's row stands above."""
    data, ranking = tested
    before = nearest_images(ranking)
    before["average_precision"] = np.random.default_rng(2).random(IMAGES)
    content = retrieval_content(data, tiny_banks(), [ranking], {"tiny v2t": ("baseline CLIP", before)})
    [test] = content["tests"]
    assert [entry["kind"] for entry in test["lists"]] == ["most"] * 2 + ["least"] * 2 + ["lost"] * 2
    for entry in test["lists"]:
        for of in (entry, entry["before"]):
            marks = [image["right"] for image in of["gallery"]]
            assert of["first_right"] == marks.index(True) + 1 if any(marks) else of["first_right"] > len(marks)
    assert sum(sum(counts) for counts in content["distances"]["across"].values()) == IMAGES ** 2
    assert sum(content["distances"]["across"]["same"]) == sum(6 * 6 for _ in range(PEOPLE))
    assert 6 * STEP_Y < drawn_lists(test, content["images"]).height < 7 * STEP_Y


def test_queries_are_those_that_gained_most_least_and_lost_most():
    """Of different persons; without the untrained model those that were found worst."""
    persons, after = np.repeat(np.arange(PEOPLE), 6), np.repeat(np.linspace(0.5, 0.9, PEOPLE), 6)
    found = chosen_queries(after, after - np.repeat([0.3, 0.1, 0, -0.2, -0.1], 6), persons)
    assert {kind: persons[queries].tolist() for kind, queries in found.items()} == {
        "most": [0, 1], "least": [2, 1], "lost": [3, 4]}
    assert persons[chosen_queries(after, None, persons)["worst"]].tolist() == [0, 1, 2, 3]


def test_a_number_that_no_test_writes_is_refused(tmp_path):
    add_test(tmp_path, 0.5, record={"rank1": float("nan")})
    with pytest.raises(UserError, match="holds rank1 nan; expected a number from 0 to 1"):
        find_results(read_run(tmp_path))


def test_a_stage_without_links_or_identities(tested):
    """Nothing is called linked, right or wrong."""
    labels = {m: np.arange(IMAGES) // 6 for m in Modality}
    found = stage_content(tiny_data(np.zeros(IMAGES, int)), tiny_banks(), tested[1], tiny_banks(), labels, None)
    found = found["clusters"]
    assert found["links"] == [] and not found["known"] and "right" not in json.dumps(found)


def test_results_are_rows(tmp_path):
    """Baseline, last epochs, best epochs, and other tests; what training and test.py both tested is not said twice."""
    [folder] = runs_of(tmp_path, [(0.9, 0.2, 0.3)], DATASET={"NAME": "tiny"})
    add_test(folder, 0.04, "baseline", epoch=0)
    for of, number, epoch, settings in (("own_tool", 0.01, 9, {}), ("prepare_last", 0.3, 3, {}),
                                        ("prepare_last", 0.05, 3, {"PRECISION": "bf16"})):
        add_test(folder, number, of, epoch=epoch, **settings,
                 record={"per_trial": [dict.fromkeys(NUMBERS, number + sign * 0.01) for sign in (1, -1)]})
    add_test(folder, 0.8, "prepare_best", protocol="gone")
    (folder / "prepare_best.pth").write_text("trained again since")
    results = find_results(read_run(folder))
    [table] = result_tables(results)
    assert [[row["name"], *(row["cells"][0][key] for key in ("value", "spread", "gain"))] for row in table["rows"]] == [
        ["baseline CLIP", "4.0", "", ""], ["train_prepare.py, epoch 3", "30.0", "", "+26.0"],
        ["train_prepare.py, epoch 3, PRECISION bf16", "5.0", "± 1.4", "+1.0"],
        ["train_prepare.py, epoch 1, best Rank-1 on test data", "90.0", "", "+86.0"],
        ["test.py: own_tool.pth", "1.0", "± 1.4", "−3.0"]]
    assert main_result(results).name == "train_prepare.py, epoch 3"       # what the page begins with


def test_published_logs_and_figures_stand_beside_a_run(tmp_path):
    """Those of its data set and method; with other people in the layout there are none."""
    [folder] = runs_of(tmp_path, [(0.1, 0.2, 0.3)], DATASET={"NAME": "sysu"})
    rows = [{**json.loads(line), "clusters_rgb": 1420, "clusters_ir": 430}
            for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report_data").mkdir()
    (folder / "report_data/run-train_prepare.json").write_text(json.dumps({"method": "cclnet", "command": ""}))
    text, [table] = write_run_page(folder).read_text(), result_tables(find_results(read_run(folder)), "sysu", "cclnet")
    row = next(row for row in table["rows"] if row["name"].startswith("published"))
    assert row["name"] == "published, CCLNet, CLIP RN50, train_prepare, best on test"
    assert row["cells"][0]["value"] == "50.0"
    assert row["name"] in text and "SDCL, infrared" in text
    assert "1,420 visible clusters in the first epoch; published runs of other methods have 687 to 898." in text
    assert "430 infrared" not in text
    config = yaml.safe_load((folder / "config.yml").read_text())
    config["DATASET"]["CHECK_COUNTS"] = False
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    assert read_run(folder).published_as == ""


def test_seeds_are_averaged_and_compared_with_the_first_method(tmp_path):
    values = {"one": [(0.1, 0.4), (0.3, 0.6)], "other": [(0.2, 0.65)]}
    groups = {name: [read_run(folder) for folder in runs_of(tmp_path / name, of)] for name, of in values.items()}
    means = {name: averaged([find_results(run) for run in group]) for name, group in groups.items()}
    (table,) = compared_tables(means)
    assert [[row["name"], row["over"], *(row["cells"][0][key] for key in ("value", "spread", "gain"))]
            for row in table["rows"]] == [["one", "± over 2 runs", "50.0", "± 14.1", ""],
                                          ["other", "", "65.0", "", "+15.0"]]
    assert means["one"][0].cmc[:2] == pytest.approx((0.5, 0.51))
    charts = comparison_charts({name: [run.epochs for run in group] for name, group in groups.items()}, "prepare")
    chart = next(chart for chart in charts if chart.name == "prepare_test.rank1")
    one, other = chart.lines
    assert (one.x, one.label, other.label) == ([1, 2], "one", "other")
    np.testing.assert_allclose((one.y, one.spread), ([20, 50], [200 ** 0.5] * 2))
    assert (other.x, other.y, other.spread) == ([1, 2], pytest.approx([20, 65]), ())
