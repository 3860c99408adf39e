"""docs/extending.md and docs/extending-methods.md do what they say: their files are run outside the repository."""
import re
import subprocess
import sys

import pytest
import scripts
import torch
import trees
from PIL import Image
from torchvision.models import resnet18

from data.registry import OPENERS
from loss.cclnet import CCLNet
from loss.methods import METHODS
from model.towers.registry import TOWERS
from processor.run.folder import read_rows
from tools.lib import schedule

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
    for number, path in enumerate(sorted(people.glob("cam*/*/*.jpg"))):
        kind = "infrared" if path.parts[-3] in ("cam3", "cam6") else "visible"
        copy = folder / "people" / kind / path.parts[-2] / f"{number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(copy)
    torch.save(resnet18().state_dict(), folder / "resnet18.pth")
    return folder


@pytest.fixture
def here(project, monkeypatch):
    """Runs a script in this process, for an epoch; afterwards nothing that it imports is entered any more."""
    scripts.without_report(monkeypatch)
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    names = {path.stem for path in project.glob("*.py")} | {"imagenet_resnet18"}
    for registry in (METHODS, OPENERS, TOWERS, sys.modules):
        for name in names:
            monkeypatch.setitem(registry, name, None)
            registry.pop(name)

    def run(script, name="", **changes):
        words = scripts.settings(**{"DATASET__ROOT": "sysu", "CLUSTER__K1": 4, "METHOD__CROSS_EPOCH": 1,
                                    "SAMPLER__ITERATIONS": 2, "TEST__TRIALS": 1, "OUTPUT_DIR": f"runs/{name}",
                                    "METHOD__NAME": name, **changes})
        script, *first = script.split()
        monkeypatch.setattr(sys, "argv", [script, *first, *words])
        names = {"__name__": "__main__"}
        exec(compile((project / script).read_text(), script, "exec"), names)
        return read_rows(project / "runs" / name)[-1] if name else names
    return run


def test_a_method_with_a_setting_in_a_project_that_has_utils_of_its_own(here, project, tiny_clip_file):
    """The script that imports the project's utils starts, here for its help, the one that imports this repository's."""
    here("test_nearest.py")["test_each_cluster_is_linked_with_the_nearest"]()
    row = here("run_nearest.py train_prepare", "nearest", MODEL__CLIP_WEIGHTS=tiny_clip_file, METHOD__ACROSS_WEIGHT=0.5)
    assert row["loss_across"] > 0 and row["links"] > 0
    assert "ACROSS_WEIGHT: 0.5" in (project / "runs/nearest/config.yml").read_text()
    said = subprocess.check_output([sys.executable, "run_all.py", "--help"], cwd=project, text=True)
    assert "train_prepare.py" in said and f"{row['links']} links in the last epoch" in said


def test_a_data_set_a_loss_and_a_tower(here, project):
    row = here("mine.py train_prepare", "compact", DATASET__NAME="folders", DATASET__ROOT="people",
               METHOD__COMPACT_WEIGHT=0.2, MODEL__CLIP_WEIGHTS="resnet18.pth", MODEL__TOWER="imagenet_resnet18")
    assert {"loss_rgb", "loss_ir", "loss_compact"} <= row.keys() and 0 < row["loss_compact"] < 0.8
    assert row["test"]["protocol"] == "folders v2t, one image per person"
    content = torch.load(project / "runs/compact/prepare_last.pth", weights_only=True)
    assert content["model"]["kind"] == "imagenet_resnet18"


def test_a_linking_rule(here, tiny_clip_file, monkeypatch):
    """Not even at an epoch's end does the method's former rule link."""
    monkeypatch.setattr(CCLNet, "rule", None)
    row = here("mine.py train_prepare", "mutual", MODEL__CLIP_WEIGHTS=tiny_clip_file)
    assert row["links"] > 0 and row["links_per_cluster"] == 1


def test_a_grid_of_ones_own_methods(here, project, tiny_clip_file, monkeypatch, capsys):
    """Training, and the tests of what it has trained, start by the script that enters the method."""
    monkeypatch.setattr(schedule.subprocess, "Popen", scripts.InThisProcess)
    with pytest.raises(SystemExit, match="2"):
        here("mine.py tools.experiments run")
    assert "mine.py is to run tools.experiments; expected train_prepare, train_clip, " in capsys.readouterr().err
    here("mine.py experiments run --only prepare", METHOD__NAME="mutual",
         OUTPUT_DIR="runs/grid", MODEL__CLIP_WEIGHTS=tiny_clip_file)
    assert scripts.InThisProcess.started[-3:] == ["mine"] * 3
    assert len(list((project / "runs/grid/seed1").glob("tests/prepare_*-python-both-*/metrics.json"))) == 2
