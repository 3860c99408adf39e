"""README and docs: their examples run, and what they name (files, tests, commands, keys, messages) is there."""
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import torch
import torchvision
from PIL import Image
from trees import people_tree

from configs.defaults import as_dict, load_config
from data import registry
from model.published import load_checkpoint
from model.released import model_from_checkpoint
from model.towers.registry import TOWERS
from processor.run.folder import MODEL_FILES
from processor.train import train_step
from tests.tiny import tiny_banks, tiny_model
from tools import demo
from tools.dev import method_figure, settings_page
from tools.lib import summary
from utils.modality import Modality
from utils.settings import flat

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = flat(as_dict(load_config()))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands(page):
    """The command lines of a page: [words of one], from code blocks and between backticks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text_of(page), re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    lines = [line.split("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline
    return [" ".join(line.split()).removeprefix("$ ").split() for line in lines
            if re.match(r"(\$ )?(OMP_NUM_THREADS=\d+ )?(python|make|torchrun) ", " ".join(line.split()))]


def test_the_settings_page_is_of_todays_settings():
    """Run `python tools/dev/settings_page.py` if this fails."""
    assert text_of(ROOT / "docs/settings.md") == settings_page.page()


def test_settings_are_explained_by_their_comments():
    comments = settings_page.read_comments(
        "_C = CfgNode()\n_C.A = CfgNode()   # all\n_C.A.B = [1,\n    2]   # two,\n          # words\n# no\n"
        "_C.A.C = '#'\n")
    assert comments == {"A": "all", "A.B": "two, words"}


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            headings = [re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
                        for line in text_of(other).splitlines() if line.startswith("#")]
            assert anchor in [*headings, *re.findall(r'<a id="([^"]+)"', text_of(other))], target


@pages
def test_named_tests_and_files_exist(page):
    for file, name in re.findall(r"`(tests/test_\w+\.py)::(\w+)`", text_of(page)):
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|yml|md|png|pt))`", text_of(page)):
        written_there = f"`{name}`:" in text_of(page)       # a file that an example on the page makes
        assert name.startswith(("runs/", "dataset/")) or written_there or (ROOT / name).is_file(), name


@pages
def test_commands_are_those_of_the_scripts(page):
    """Scripts, options, make's targets and KEY VALUE pairs exist."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        words = words[1:] if words[0].startswith("OMP") else words
        if words[0] == "make":
            assert words[1] in targets, words
            continue
        script = words[2].replace(".", "/") if words[1] == "-m" else next((w for w in words if w.endswith(".py")), None)
        if script is None or script.startswith("http"):
            continue
        path = ROOT / (f"{script}/__main__.py" if (ROOT / script).is_dir() else script.removesuffix(".py") + ".py")
        assert path.is_file(), words
        known = path.read_text() + (ROOT / "configs/command_line.py").read_text() + tool_behind(path)
        for option in (word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")):
            assert words[0] == "torchrun" or option[2:].replace("-", "_") in known.replace("-", "_"), (words, option)
        assert [word for word in words if re.fullmatch(r"[A-Z]+\.[A-Z_0-9]+", word) and word not in KEYS] == [], words


def tool_behind(path):
    """The source of the tool that an old spelling runs."""
    tool = ROOT / "tools" / path.name
    return tool.read_text() if tool.is_file() else ""


@pages
def test_named_settings_exist(page):
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[A-Z_0-9]+)\b", text_of(page))
    assert [key for key in named if key not in KEYS] == []


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    source = " ".join(path.read_text() for folder in ("configs", "data", "model", "processor", "utils", "loss")
                      for path in (ROOT / folder).rglob("*.py")) + (ROOT / "test.py").read_text()
    source = re.sub(r'"\s*\n\s*f?"', "", source)        # sentences run over several lines
    messages = re.findall(r"^> (.+)$", text_of(ROOT / "docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 8
    assert [message for message in messages if message not in source] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_demos_table_is_that_of_the_reference_logs(page):
    runs = [run for folder in sorted((ROOT / "docs/reference/demo").iterdir())
            for run in summary.read_runs([folder], "python")]
    assert [run.settings["SEED"] for run in runs] == [1, 2, 3, 4, 5]
    results = [[run.tests[name, "all"] for name in demo.TESTED] for run in runs]
    cells = re.compile(r"[\d.]+ ± [\d.]+")
    for stage, line in zip(demo.STAGES, demo.table(results).splitlines()[1:], strict=True):
        row = re.search(rf"^\| {stage}.*$", text_of(ROOT / page), re.MULTILINE).group()     # the first table's
        assert cells.findall(row) == cells.findall(line), stage


def test_the_table_of_methods_is_that_of_the_reference_logs():
    """Folders with fewer than five seeds too. A bound's name stands in the space's place; texts have no prepare."""
    def spread(values, digits):
        deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{deviation}"

    expected = []
    for folder in (ROOT / "docs/reference/demo", *sorted((ROOT / "docs/reference/methods").iterdir())):
        runs = summary.read_runs([folder], "python")
        assert [run.settings["SEED"] for run in runs] == list(range(1, len(runs) + 1)), folder
        method, space, exchange, bound = (runs[0].settings.get(key) for key in (
            "METHOD.NAME", "METHOD.LINK_BY", "INPUT.CHANNEL", "BOUND"))
        links = bound or space or "prototype"
        for stage, script in (("prepare", "train_prepare"), ("finetune", "train_clip")):
            if space == "text" and stage == "prepare":
                continue
            numbers = [run.tests[f"{MODEL_FILES[stage]}_last", "all"] for run in runs]
            cells = [spread([100 * found[name] for found in numbers], 1) for name in ("rank1", "mAP")]
            cells.append(spread([100 * run.logged[stage]["matching_accuracy"] for run in runs], 0))
            head = f"{method} | {links} | {exchange:g} | {script} | {len(runs)}"
            expected.append(f"| {head} | {' | '.join(cells)} |")
    found = re.findall(r"^\| (?:cclnet|pgm|rpnr) \|.*\|$", text_of(ROOT / "docs/results.md"), re.MULTILINE)
    assert sorted(found) == sorted(expected)


def test_the_methods_figure_is_the_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["method_figure.py", "--output", str(tmp_path / "method.svg")])
    method_figure.main()
    drawn, kept = ((folder / "method.svg").read_text() for folder in (tmp_path, ROOT / "assets"))
    assert drawn.count("<path") == kept.count("<path") > 50


def blocks(page):
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


@pytest.fixture(scope="module")
def examples():
    """The names that the blocks of docs/extending.md define, run in their order, and what they changed is undone."""
    names, path, openers = {}, list(sys.path), dict(registry.OPENERS)
    for block in blocks(ROOT / "docs/extending.md"):
        if not block.startswith("#"):       # the name of a file of its own
            exec(compile(block, "docs/extending.md", "exec"), names)
    yield names
    sys.path[:] = path
    registry.OPENERS.clear()
    registry.OPENERS.update(openers)


def test_the_data_set_of_the_example_is_trained_on(examples, tmp_path, tiny_clip_file, monkeypatch):
    scripts.without_report(monkeypatch)
    images = {m: bank.images for m, bank in tiny_banks().items()}
    for m, folder in examples["FOLDERS"].items():
        for index, pixels in enumerate(images[m]):
            path = tmp_path / f"people/{folder}/{index // 6:03d}/{index % 6}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    data = registry.open_dataset("folders", tmp_path / "people")
    assert [sorted(set(images.persons)) for _, images in data.sets()] == [[0, 2, 4]] * 2 + [[1, 3]] * 2
    retrieval = data.retrieval("t2v", trials=2)
    assert (len(retrieval.query), [len(gallery) for gallery in retrieval.galleries]) == (12, [2, 2])
    words = scripts.settings(DATASET__NAME="folders", DATASET__ROOT=tmp_path / "people", CLUSTER__K1=4,
                             MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=tmp_path / "run")
    assert scripts.call(scripts.load("train_prepare"), words) == 0
    assert (tmp_path / "run/prepare_last.pth").is_file()


def test_the_association_of_the_example(examples):
    rgb = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    links = examples["mutual_nearest"](rgb, torch.tensor([[1.0, 0.0], [0.1, 0.9]]))
    assert links.rgb_to_ir.tolist() == [0, -1, 1] and links.ir_to_rgb.tolist() == [0, 2]


def test_the_backbone_of_the_example_is_trained_and_tested(tmp_path, monkeypatch):
    """Its two files as they stand on the page: the tower's, and the script that calls train_prepare.py."""
    files = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text_of(ROOT / "docs/extending.md"), re.DOTALL))
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    scripts.without_report(monkeypatch)
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(TOWERS, "imagenet_resnet18", None)      # what the script adds is taken out again
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", ["train", *map(str, scripts.settings(
        DATASET__ROOT=people_tree(tmp_path / "data"), MODEL__CLIP_WEIGHTS=tmp_path / "resnet18.pth",
        OUTPUT_DIR=tmp_path / "run", MODEL__TOWER="imagenet_resnet18"))])
    runpy.run_path(str(tmp_path / "train_imagenet_resnet.py"), run_name="__main__")
    checkpoint = tmp_path / "run/prepare_last.pth"
    content = load_checkpoint(checkpoint)
    assert model_from_checkpoint(content, checkpoint).describe()["kind"] == "imagenet_resnet18"
    assert scripts.call(scripts.load("test"), ["--resume_path", checkpoint]) == 0
    tested = json.loads(next(tmp_path.glob("run/**/metrics.json")).read_text())
    assert tested["mAP"] == pytest.approx(content["metrics"]["mAP"], abs=1e-6)


def test_the_loss_of_the_example_takes_a_step(examples, model):
    images = torch.rand(2, 3, 32, 16)
    memory = SimpleNamespace(needs_whole_batch=False,
                             losses=lambda features, *rest: {"loss_rgb": features[Modality.RGB].sum()},
                             update=lambda features, labels: {})
    text = SimpleNamespace(losses=lambda projections, *rest: {"loss_i2t_rgb": projections[Modality.RGB].sum()})
    guidance = examples["ShortProjections"](text, 0.5)
    batch = SimpleNamespace(images={m: images for m in Modality}, labels={m: np.zeros(2, int) for m in Modality},
                            positions=None)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses, _ = train_step(model.train(), optimizer, memory, batch, guidance, "fp32")
    assert set(losses) == {"loss_rgb", "loss_i2t_rgb", "loss_length_rgb", "loss_length_ir"}
    assert losses["loss_length_ir"] > 0
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert "tower.attnpool.c_proj.weight" in changed


def test_the_readmes_example(tmp_path, tiny_clip_file, monkeypatch, capsys):
    """Ten lines: a checkpoint, two images, their distance."""
    (code,) = blocks(ROOT / "README.md")
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    model = tiny_model(tiny_clip_file).eval()
    checkpoint, *pictures = re.findall(r'"([\w/]+\.(?:pth|jpg|png))"', code)
    for name in (checkpoint, *pictures):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "model": model.describe()}, checkpoint)
    for name in pictures:
        Image.fromarray(tiny_banks()[Modality.RGB].images[len(name)]).save(name)
    exec(compile(code, "README.md", "exec"), {})
    assert 1e-3 < float(capsys.readouterr().out) < 2


def test_the_readme_is_short():
    assert len([word for word in text_of(ROOT / "README.md").split() if re.search(r"\w", word)]) <= 1200
