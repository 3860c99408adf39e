"""docs/extending.md and docs/extending-methods.md do what they say: their files are run outside the repository."""
import json
import re
import subprocess
import sys

import pytest
import scripts
import torch
import trees
from torchvision.models import resnet18

from loss.methods import METHODS

DOCS = scripts.REPOSITORY / "docs"
FILE = re.compile(r"```python\n(# (\w+\.py)\n.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that has this repository as a submodule, and packages utils and data of its own."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "third_party").mkdir()
    (folder / "third_party/cclnet").symlink_to(scripts.REPOSITORY)
    for page in ("extending.md", "extending-methods.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        files = FILE.findall(text)
        assert len(files) == text.count("```python")
        for code, name in files:
            (folder / name).write_text(code)
    for package, code in (("utils", "def folder_of(name):\n    return f'runs/{name}'\n"), ("data", "")):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
        (folder / package / "names.py").write_text(code)
    people = trees.people_tree(folder / "sysu")
    for number, path in enumerate(sorted(people.glob("cam*/*/*.png"))):
        kind = "infrared" if path.parts[-3] in ("cam3", "cam6") else "visible"
        copy = folder / "people" / kind / path.parts[-2] / f"{number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    torch.save(resnet18().state_dict(), folder / "resnet18.pth")
    return folder


def train(project, script, name, clip_file, **changes):
    """Run a script of the pages in the project: rows of metrics.jsonl, what it printed."""
    words = scripts.settings(**{"DATASET__ROOT": "sysu", "MODEL__CLIP_WEIGHTS": clip_file, "CLUSTER__K1": 4,
                                "METHOD__CROSS_EPOCH": 1, "OUTPUT_DIR": f"runs/{name}", **changes})
    done = subprocess.run([sys.executable, script, *words], cwd=project, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = (project / f"runs/{name}/metrics.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows], done.stdout


def test_a_method_with_a_setting_in_a_project_that_has_utils_of_its_own(project, tiny_clip_file):
    rows, printed = train(project, "run_all.py", "nearest", tiny_clip_file, METHOD__NAME="nearest",
                          METHOD__ACROSS_WEIGHT=0.5)
    assert rows[-1]["loss_across"] > 0 and rows[-1]["links"] > 0
    assert f"{rows[-1]['links']} links in the last epoch" in printed
    assert "ACROSS_WEIGHT: 0.5" in (project / "runs/nearest/config.yml").read_text()


def test_the_tests_of_the_page_pass(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr("loss.methods.METHODS", {})
    names = {}
    exec(compile((project / "test_nearest.py").read_text(), "test_nearest.py", "exec"), names)
    names["test_each_cluster_is_linked_with_the_nearest"]()


def test_a_data_set_a_loss_and_a_tower(project):
    rows, _ = train(project, "train_mine.py", "people", "resnet18.pth", DATASET__NAME="folders", DATASET__ROOT="people",
                    METHOD__NAME="compact", METHOD__COMPACT_WEIGHT=0.2, MODEL__TOWER="imagenet_resnet18")
    assert {"loss_rgb", "loss_ir", "loss_compact"} <= rows[-1].keys() and 0 < rows[-1]["loss_compact"] < 0.8
    assert rows[-1]["test"]["protocol"] == "folders v2t, one image per person"
    content = torch.load(project / "runs/people/prepare_last.pth", weights_only=True)
    assert content["model"]["kind"] == "imagenet_resnet18"


def test_a_linking_rule(project, tiny_clip_file, monkeypatch):
    """In this process: the same file, entered and used as the page's script does."""
    monkeypatch.chdir(project)
    scripts.without_report(monkeypatch)
    exec(compile((project / "mutual.py").read_text(), "mutual.py", "exec"), {})
    words = scripts.settings(DATASET__ROOT="sysu", MODEL__CLIP_WEIGHTS=tiny_clip_file, CLUSTER__K1=4,
                             METHOD__CROSS_EPOCH=1, METHOD__NAME="mutual", OUTPUT_DIR="runs/mutual")
    try:
        assert scripts.call(scripts.load("train_prepare"), words) == 0
    finally:
        METHODS.pop("mutual")
    row, = (json.loads(line) for line in (project / "runs/mutual/metrics.jsonl").read_text().splitlines())
    assert row["links"] > 0 and row["links_per_cluster"] == 1
