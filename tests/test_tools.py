"""Every tool runs from any folder; mistakes end in one sentence and exit code 2; small pictures and tables."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import demo
from tools.dev import mutants, trace

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"bounds": "labels", "demo": "--seeds", "download": "--output_dir", "export_released": "--clip_weights",
         "evaluate": "--rerank", "experiments": "--seeds", "process": "--allow_partial", "search": "--query",
         "dev/mutants": "--sample", "dev/ranking_picture": "--ranks",
         "dev/settings_page": "--output", "dev/trace": "--list",
         "dev/train_demo_clip": "--steps"}


def run(words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *map(str, words)], cwd=folder, env=environment, text=True,
                           capture_output=True, timeout=120)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_tools_explain_themselves_from_any_folder(name, tmp_path):
    code, out, err = run([ROOT / "tools" / f"{name}.py", "--help"], tmp_path)
    assert (code, err) == (0, "") and TOOLS[name] in out and f"python tools/{name}.py" in out
    assert not list(tmp_path.iterdir())


def test_every_tool_is_tried():
    found = {path.relative_to(ROOT / "tools").with_suffix("").as_posix() for pattern in ("*.py", "dev/*.py")
             for path in (ROOT / "tools").glob(pattern) if path.stat().st_size}
    assert found == set(TOOLS)


def test_the_released_name_of_process_runs_it(tmp_path):
    """A mistake is one sentence."""
    code, out, _ = run([ROOT / "data/process.py", "--help"], tmp_path)
    assert code == 0 and "python tools/process.py" in out
    code, _, err = run([ROOT / "data/process.py", "--no_such"], tmp_path)
    assert code == 2 and err.startswith("error: the command line is not understood: ") and err.count("\n") == 1


def test_the_demo_tabulates_seeds():
    def results(value):
        return [{"rank1": stage * value, "rank10": 1.0, "mAP": 0.5, "mINP": 0.25} for stage in (1, 2, 3)]

    head, baseline, _, clip = demo.table([results(0.1)]).splitlines()
    assert head.split() == ["Rank-1", "Rank-10", "mAP", "mINP"]
    assert baseline.split() == ["baseline", "CLIP", "10.0", "100.0", "50.0", "25.0"]
    assert clip.split()[2:] == ["30.0", "100.0", "50.0", "25.0"]
    lines = demo.table([results(0.1), results(0.2)]).splitlines()
    assert lines[1].split()[2:5] == ["15.0", "±", "7.1"] and lines[2].split()[2:5] == ["30.0", "±", "14.1"]


def test_mutants_names_tests_as_pytest_does():
    assert mutants.node_id("tests.test_a.test_x") == mutants.node_id("test_a.test_x") == "tests/test_a.py::test_x"
    assert all((ROOT / path).is_file() for names in mutants.TESTS for path in mutants.tests_of(names))


def test_calls_are_counted():
    calls = [("a.py", "f"), ("a.py", "g"), ("b.py", "f"), ("a.py", "f")]
    assert trace.count(calls) == (3, 2, 2)
