"""The page of a run: everything is on it, nothing is fetched; ranked lists as files."""
import csv
import json
import logging
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from processor.evaluate import _rank
from tests.tiny import IMAGES, PEOPLE, tiny_banks, tiny_data
from utils.errors import UserError
from utils.modality import Modality
from utils.report import __main__ as command
from utils.report.content import retrieval_content, stage_content
from utils.report.ranking import rank_trial, save_rankings
from utils.report.write import NUMBERS, save_report, write_comparison_page, write_run_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Runs in the page when it has loaded; its findings are the title, which --dump-dom prints.
PROBE = """<script>const errors=[];addEventListener("error",e=>errors.push(e.message||"resource"),true);
addEventListener("load",()=>{const all=s=>[...document.querySelectorAll(s)];document.title=JSON.stringify({
pictures:all("img").length,seen:all("img").filter(i=>i.complete&&i.naturalWidth>10).length,
charts:all(".panel svg").length,
drawn:all(".panel svg").filter(s=>s.getBoundingClientRect().height>60&&s.querySelectorAll("path").length>4).length,
curves:all(".named path").filter(p=>p.getTotalLength()>0).length,
wide:document.documentElement.scrollWidth-innerWidth,errors,
fetched:performance.getEntriesByType("resource").map(e=>e.name).filter(n=>!n.startsWith("data:"))})})</script>"""


def make_run(folder, seed):
    """A run's folder as the stages leave it but for its page, with random features and made-up numbers."""
    rng, data, banks = np.random.default_rng(seed), tiny_data(), tiny_banks()
    known = np.arange(IMAGES)
    looks = rng.normal(size=(PEOPLE, 8)).repeat(IMAGES // PEOPLE, 0)
    features = {m: torch.nn.functional.normalize(torch.from_numpy(
        looks + rng.normal(size=(IMAGES, 8))).float(), dim=1) for m in Modality}
    evaluations = [SimpleNamespace(**{**vars(_rank(data, retrieval, {m: known for m in Modality}, features)),
                                      "features": {m: (known, features[m]) for m in Modality},
                                      "mean": _rank(data, retrieval, {m: known for m in Modality}, features).mean})
                   for retrieval in retrievals(data)]
    labels = {m: np.where(rng.random(IMAGES) < 0.2, -1, np.arange(IMAGES) // 6) for m in Modality}
    pairs = np.arange(PEOPLE), np.roll(np.arange(PEOPLE), seed), rng.random(PEOPLE)
    (folder / "report_data").mkdir(parents=True)
    folder.joinpath("config.yml").write_text(f"SEED: {seed}\nDATASET:\n  NAME: tiny\n")
    rows = [{"stage": stage, "epoch": epoch, "loss": 1 / epoch, "loss_rgb": 2 / epoch, "loss_ir": 3 / epoch, "lr": 1e-4,
             "clusters_rgb": 6, "clusters_ir": 7, "clusters_per_person_rgb": 1.2, "matched": 5.0 * (epoch > 2),
             "ari_rgb": 0.5, "ari_ir": 0.6, "matching_accuracy": 0.1 * epoch,
             "test": {"protocol": "tiny", **{k: 0.1 * epoch for k in NUMBERS}}}
            for stage in ("prepare", "model") for epoch in (1, 2, 3)]
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = stage_content("model", data, banks, retrievals(data)[0], evaluations[0], banks,
                            labels, pairs, {m: images.persons for m, images in data.train.items()})
    folder.joinpath("report_data/model.json").write_text(json.dumps(content))
    return data, evaluations


def retrievals(data):
    return [data.retrieval("v2t"), data.retrieval("t2v")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs' folders, and data and evaluations of the first."""
    folder = tmp_path_factory.mktemp("runs")
    data, evaluations = make_run(folder / "first", 1)
    make_run(folder / "second", 2)
    save_report(folder / "first", logging.getLogger("test"), "test",
                lambda: retrieval_content("test", data, tiny_banks(), retrievals(data), evaluations))
    write_comparison_page([folder / "first", folder / "second"])
    return folder, data, evaluations


def test_page_holds_everything_and_fetches_nothing(runs):
    text = (runs[0] / "first/report.html").read_text()
    for words in ("tiny v2t", "tiny t2v", "Best queries", "Worst queries", "Random queries", "Most impure clusters",
                  "Matched pairs", "different persons", "Outliers, infrared", "Test embeddings", "CMC", "Learning rate",
                  "swapping begins", "Distances, visible to infrared", "camera 1: 30", "DATASET.NAME"):
        assert words in text, words
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?://|url\((?!#)|@import|src=\"(?!data:)", outside)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert "#1d2127" not in text.replace("--ink:#1d2127", "")      # figures take the page's colours


def test_figures_as_files(tmp_path, monkeypatch, capsys):
    """The command writes page and figures of a run that has had one epoch so far."""
    tmp_path.joinpath("metrics.jsonl").write_text('{"stage": "prepare", "epoch": 1, "loss_rgb": 3.5, "lr": 1e-4}\n')
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--figures", str(tmp_path / "figures")])
    command.main()
    assert capsys.readouterr().out == f"written to {tmp_path / 'report.html'}\n"
    assert (tmp_path / "figures/prepare_loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures/prepare_lr.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.glob("figures/*"))) == 4


def test_comparison(runs):
    text = (runs[0] / "first/comparison.html").read_text()
    assert "Comparison of 2 runs" in text
    assert "SEED" in text and "DATASET.NAME" not in text      # the settings that differ, and no others
    assert text.count("<title>first</title>") == text.count("<title>second</title>") + 2 > 20   # the CMC of two tests


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


def test_ranked_lists_as_files(runs, tmp_path):
    """Others get the same mAP from the CSV's ranking and from the features."""
    _, data, evaluations = runs
    names = [path.name for path in save_rankings(tmp_path, data, retrievals(data), evaluations)]
    assert names == ["ranking_v2t.csv", "ranking_t2v.csv", "features.npz"]
    for retrieval, evaluation in zip(retrievals(data), evaluations):
        ranking = rank_trial(data, retrieval, evaluation.features)
        assert ranking.average_precision.mean() == pytest.approx(evaluation.per_trial[0].mAP)
    with open(tmp_path / "ranking_v2t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == IMAGES * 20
    first = [int(row["match"]) for row in rows if row["rank"] == "1"]
    assert np.mean(first) == pytest.approx(evaluations[0].per_trial[0].cmc[0])
    with np.load(tmp_path / "features.npz", allow_pickle=False) as arrays:
        distance = 1 - (arrays["rgb_features"][arrays["v2t_query"]] @ arrays["ir_features"][arrays["v2t_gallery_0"]].T)
        assert arrays["ir_paths"][distance[0].argmin()] == rows[0]["gallery"]


def test_files_of_another_kind(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text('{"rank1": 0.5}')
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(UserError, match="do not hold what the stages write"):
        command.main()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("name, size", [("report", "390,844"), ("comparison", "1300,900")])
def test_in_a_browser(runs, tmp_path, name, size):
    """Every picture and curve is there, nothing is fetched or an error, and nothing sticks out at phone width."""
    text = (runs[0] / f"first/{name}.html").read_text()
    page = tmp_path / "probe.html"
    page.write_text(text.replace("<head>", f"<head>{PROBE}", 1))
    result = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}",
                             "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                             page.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", result.stdout).group(1))
    assert found["errors"] == [] and found["fetched"] == [] and ":CONSOLE" not in result.stderr
    assert found["pictures"] == found["seen"] == text.count("<img ")
    assert found["charts"] == found["drawn"] == text.count("<svg ") and found["charts"] > 15
    assert found["curves"] >= found["charts"] and found["wide"] <= 0
