"""The page of a run, and that of several: everything is on it, nothing is fetched, and text stays text."""
import html
import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import scripts
import torch
import trees
import yaml
from huggingface_hub import ModelCard

from report.write import save_report, write_comparison_page, write_run_page
from tests.tested import runs_of
from tools.export_released import main as export
from utils.errors import UserError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = (Path(__file__).parent / "report_probe.html").read_text()     # its findings are its title


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_clip_file):
    """The folder of a run that the scripts themselves trained and tested; the page of train_prepare is not drawn."""
    folder = tmp_path_factory.mktemp("runs")
    words = scripts.settings(DATASET__ROOT=trees.people_tree(folder / "data"), MODEL__CLIP_WEIGHTS=tiny_clip_file,
                             PROMPT__EPOCHS=2, FINETUNE__EPOCHS=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report.write.write_run_page", lambda *_: "a page")
        assert scripts.call(scripts.load("train_prepare"), [*words, "OUTPUT_DIR", folder / "run"]) == 0
    assert scripts.call(scripts.load("train_clip"), [*words, "OUTPUT_DIR", folder / "run"]) == 0
    words = ["--resume_path", folder / "run/model_last.pth", "OUTPUT_DIR", folder / "not", "TEST.TRIALS", "2",
             "TEST.MODE", "both"]
    assert scripts.call(scripts.load("test"), words) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def comparison(run):
    """The page of two runs, the second a copy of the first that says it had another seed and setting."""
    other = shutil.copytree(run, run.parent / "other")
    for path in other.glob("report_data/run-*.json"):
        path.unlink()
    config = yaml.safe_load((other / "config.yml").read_text())
    (other / "config.yml").write_text(yaml.safe_dump({**config, "SEED": 2, "CLUSTER": {**config["CLUSTER"], "K1": 9}}))
    return write_comparison_page([run, other], run.parent / "comparison.html").read_text()


def rows_of(text, heading):
    """The rows of the first table after a heading: [[text of each cell]]."""
    table = text[text.index(heading):].partition("</table>")[0]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
            for row in table.split("<tr")[2:]]


def test_a_run_ends_with_its_page(run):
    """It holds what each script was to add; a test renews it, and has a page of its own."""
    metrics = torch.load(run / "model_last.pth", weights_only=True)["metrics"]
    for folder, pages in ((run, 2), (next(run.glob("tests/model_last-*")), 1)):
        log, text = (" ".join((folder / name).read_text().split()) for name in ("log.txt", "report.html"))
        assert log.count("report: ") == pages and "warning: the report" not in log
        for mode in ("all", "indoor"):
            rows = rows_of(text, f"<h3>SYSU-MM01 {mode}-search single-shot, Python seeds 0-1; ")
            assert [row[0].partition(" ± ")[0] for row in rows if "published" not in row[0]] == [
                "baseline CLIP", *(["train_prepare.py, epoch 1"] if mode == "all" and folder == run else []),
                "train_clip.py, epoch 2"]
        assert ("<h4>Largest clusters, visible</h4>" in text) == (folder == run)
        assert f"{100 * metrics['mAP']:.1f}" in text and metrics["protocol"] in text
    [events] = run.glob("tensorboard/finetune/*")
    assert all(tag in events.read_bytes() for tag in (b"test/ranked_lists", b"test/map", b"loss/i2t_rgb"))
    assert f"and of its run: {run / 'report.html'}" in log and not (run.parent / "not").exists()


def test_pages_fetch_nothing(run, comparison):
    text = (run / "report.html").read_text()
    for words in ("Linked clusters", "Distances, visible to infrared", "diagnosis by known identities",
                  "<dt>CLUSTER.K1</dt><dd>8 <span>default 30</span></dd>", "<dt>Commit</dt>",
                  "Small numbers below: the gain over baseline CLIP", "torch "):
        assert words in text, words
    assert re.findall(r'<section id="(.*?)"', text) == ["results", "lists", "map", "clusters", "training", "run"]
    for page in (text, comparison):
        outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
        assert not re.search(r"https?://|url\((?!#)|@import|src=\"(?!data:)", outside)
    assert "Comparison of 2 runs" in comparison
    first, second = "cclnet, CLUSTER.K1 8 (n = 1)", "cclnet, CLUSTER.K1 9 (n = 1)"
    head, *rows = rows_of(comparison, "<h3>train_clip.py: SYSU")
    assert head[0].startswith(first) and rows[0][0].startswith(second) and rows[0][1].endswith("+0.0")
    assert f"<h3>{second}</h3>\n<code>train_clip.py all        Rank-1   +0.00  95 % from  +0.00 to  +0.00  p 1.0000  " \
        "not told apart by one run each, over 12 queries alone</code>" in comparison


ATTACK = """$x_{$</title></script><script>alert(1)</script>"><img src=x onerror='alert("2")'>"""


def test_everything_from_files_is_text(run, tmp_path):
    """Settings, protocols, paths and losses that hold tags and quotes stay text; one that is a formula too."""
    folder = tmp_path / ATTACK.replace("/", "")
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.pth", "tests"))
    (folder / "config.yml").write_text(yaml.safe_dump({"SEED": 1, "DATASET": {"NAME": ATTACK}, ATTACK: [ATTACK]}))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{"stage": row["stage"], "epoch": row["epoch"], f"loss_{ATTACK}": 1,
             "test": {**row["test"], "protocol": ATTACK}} for row in rows if "test" in row]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in 2 * rows))
    for path in folder.glob("report_data/*.json"):      # paths of images, and the command
        path.write_text(re.sub("cam1/|train_", lambda _: json.dumps(ATTACK)[1:-1], path.read_text()))
    for path in (write_run_page(folder), write_comparison_page(
            [folder, *runs_of(tmp_path / "others", [(0.1, 0.2)])], tmp_path / "comparison.html")):
        text = path.read_text()
        assert "<script>alert" not in text and "<img src=x" not in text and text.count("&lt;img src=x") > 4
        assert text.count("<script") == 1 and re.findall('src="(?!data:image/jpeg;base64,)', text) == []


def test_a_picture_for_the_hub_on_a_card_with_all_tests(run, tmp_path):
    export([str(run / "model_last.pth"), str(tmp_path / "out"), "--safetensors", "--picture"])
    card = (tmp_path / "out/README.md").read_text()
    assert "![Ranked lists](ranked_lists.png)" in card and (tmp_path / "out/ranked_lists.png").is_file()
    assert len(ModelCard(card).data.eval_results) == 12


def test_a_report_never_stops_a_run(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        save_report(tmp_path, logging.getLogger("test"), "model", lambda: 1 / 0)
    assert "the report could not be written (ZeroDivisionError" in caplog.text
    with pytest.raises(UserError, match="holds no run"):
        write_run_page(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser(run, comparison, tmp_path):
    """Nothing overlaps, sticks out or is fetched, everything is drawn, and the pointer finds values and images."""
    pages = {"report": (run / "report.html").read_text(), "comparison": comparison}
    cases = [("report", 390, "light"), ("report", 1400, "dark"), ("comparison", 1400, "light")]
    page = tmp_path / "probe.html"
    page.write_text(PROBE.replace("CASES", json.dumps(cases), 1).replace(
        "PAGES", json.dumps(pages).replace("</", "<\\/"), 1))
    result = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000",
                             "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                             "--virtual-time-budget=60000", page.as_uri()], capture_output=True, text=True, timeout=240)
    findings = json.loads(html.unescape(re.search(r"<title>(\[.*?\])</title>", result.stdout).group(1)))
    assert len(findings) == len(cases) and ":CONSOLE" not in result.stderr
    for found in findings:
        text = pages[found["page"]]
        assert found["errors"] == found["fetched"] == found["overlaps"] == found["outside"] == [], found
        assert found["charts"] == found["drawn"] == text.count("<svg ") and found["wide"] <= 0 and found["hidden"] == 0
        for closed, said, rules, value, label in found["hover"]:
            assert closed and value in said and label in said and rules == 1
        assert all(closed and said == label for closed, said, _, label in found["map"])
