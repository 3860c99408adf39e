"""Every tool runs from any folder, and so do its old spellings; mistakes end in one sentence and exit code 2."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tools import demo
from tools.dev import mutants, ranking_picture
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"bounds": "labels", "demo": "--seeds", "download": "--output_dir", "export_released": "--clip_weights",
         "evaluate": "--rerank", "experiments": "--seeds", "method_figure": "--output", "mutants": "--sample",
         "process": "--allow_partial", "ranking_picture": "--ranks", "settings_page": "--output", "soak": "--minutes",
         "train_demo_clip": "--people"}
OLD = {("-m", "utils.download"): "download", ("-m", "model.released"): "export_released",
       (str(ROOT / "data" / "process.py"),): "process"}


def start(words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def end(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("name", TOOLS)
def test_tools_explain_themselves_from_any_folder(name, tmp_path):
    code, out, err = end(start([str(ROOT / "tools" / f"{name}.py"), "--help"], tmp_path))
    assert (code, err) == (0, "") and TOOLS[name] in out and f"python tools/{name}.py" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", OLD, ids=" ".join)
def test_old_spellings_run_the_tool(words, tmp_path):
    folder = ROOT if words[0] == "-m" else tmp_path
    code, out, err = end(start([*words, "--help"], folder))
    assert (code, err) == (0, "") and f"python tools/{OLD[words]}.py" in out


@pytest.mark.parametrize("words", [[str(ROOT / "tools" / "soak.py")], [str(ROOT / "data" / "process.py")],
                                   ["-m", "model.released"]], ids=" ".join)
def test_a_mistake_is_one_sentence(words):
    code, _, err = end(start([*words, "--no_such"], ROOT))
    assert code == 2 and err.startswith("error: the command line is not understood: ") and err.count("\n") == 1


def test_the_demos_clip_needs_as_many_people_as_a_batch():
    _, _, err = end(start([str(ROOT / "tools" / "train_demo_clip.py"), "--people", "4"], ROOT))
    assert "--batch-size 128 is more than --people 4" in err and err.count("\n") == 1


def results(value):
    return [{"rank1": stage * value, "rank10": 1.0, "mAP": 0.5, "mINP": 0.25} for stage in (1, 2, 3)]


def test_the_demo_tabulates_seeds():
    head, baseline, _, clip = demo.table([results(0.1)]).splitlines()
    assert head.split() == ["Rank-1", "Rank-10", "mAP", "mINP"]
    assert baseline.split() == ["baseline", "CLIP", "10.0", "100.0", "50.0", "25.0"]
    assert clip.split()[2:] == ["30.0", "100.0", "50.0", "25.0"]
    lines = demo.table([results(0.1), results(0.2)]).splitlines()
    assert lines[1].split()[2:5] == ["15.0", "±", "7.1"] and lines[2].split()[2:5] == ["30.0", "±", "14.1"]


def test_ranking_picture(tmp_path, monkeypatch):
    for name, colour in (("q.png", "blue"), ("g.png", "green")):
        Image.new("RGB", (12, 24), colour).save(tmp_path / name)
    ranking, picture = tmp_path / "ranking_all.csv", tmp_path / "out.png"
    ranking.write_text("trial,query,rank,gallery,match\n0,q.png,1,g.png,1\n0,q.png,2,g.png,0\n")
    monkeypatch.setattr(sys, "argv", ["ranking_picture.py", str(ranking), str(tmp_path), str(picture), "--ranks", "2"])
    ranking_picture.main()
    with Image.open(picture) as image:
        framed = ranking_picture.WIDTH + 2 * ranking_picture.FRAME + ranking_picture.GAP
        row, first = ranking_picture.GAP, 3 * ranking_picture.GAP + framed
        page = image.convert("RGB")
        assert [page.getpixel((x, row)) for x in (first, first + framed)] == [ranking_picture.RIGHT,
                                                                              ranking_picture.WRONG]
    ranking.write_text("")
    with pytest.raises(UserError, match="holds no list"):
        ranking_picture.main()
    ranking.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        ranking_picture.main()


def test_a_change_is_tried_by_the_tests_that_run_its_line():
    x, y, other = "tests/test_a.py::test_x[1]", "tests/test_b.py::test_y", "tests/test_b.py::test_z"
    seen = {"lines": {"3": [x, y], "7": ["", y]}, "seconds": {x: 2.0, y: 0.1, other: 1.0}}
    assert mutants.tests_of(3, **seen) == mutants.tests_of(5, **seen) == [y, x]
    assert mutants.tests_of(7, **seen) == mutants.tests_of(1, **seen) == [y, other, x]
