"""Files with the right frame and wrong content: every entry in turn becomes something else, or goes.

A script then says one sentence and ends with exit code 2, or does its work; it never shows a traceback.
"""
import copy
import json
import os
import random
import shutil

import broken
import pytest
import scripts
import torch
import trees

from processor.run.resume import StateFile

SCRIPTS = {name: scripts.load(name) for name in ("train_prepare", "train_clip", "test", "tools/search",
                                                 "tools/export_released")}
GONE = object()
TENSOR = torch.ones(3, 1, 2)
VALUES = (None, [], {}, "x", -1, True, 10 ** 30, 0.5, float("nan"), TENSOR, torch.ones(1).expand(10 ** 13),
          torch.ones(2, dtype=torch.complex64), GONE)
JSON_VALUES = (None, [], {}, "x", -1, True, 10 ** 30, 0.5, float("nan"), "</script>", [[[[1]]]], GONE)
DEPTH = 5
SAMPLED = int(os.environ.get("CCLNET_TAMPERED", 8))     # changes of each file; more by hand


def entries(content, depth=DEPTH):
    """Every (key, ..., key) of containers in one another."""
    keys = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in keys if depth else ():
        yield (key,)
        yield from ((key, *rest) for rest in entries(value, depth - 1))


def kinds(content):
    """Entries without repetition of alike ones: of the weights and list entries beside one another one each."""
    seen = {}
    for path in entries(content):
        name = tuple("*" if isinstance(key, int) else str(key).rsplit(".")[-1] if "." in str(key) else key
                     for key in path)
        seen.setdefault(name, path)
    return list(seen.values())


def changed(content, path, value):
    """A copy of content in which one entry is replaced, or gone."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def sample(content, values, number, seed=0):
    """Some (path, value), all kinds of entries in turn."""
    rng, paths = random.Random(seed), kinds(content)
    rng.shuffle(paths)
    return [(path, rng.choice(values)) for path in (paths * (number // len(paths) + 1))[:number]]


@pytest.fixture(scope="module")
def finished(tiny_clip_file, tmp_path_factory):
    """A folder with data, and a run that was stopped in the second epoch of each script."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("tampered")
    trees.people_tree(base / "data", ids=broken.IDS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        scripts.without_report(monkeypatch)
        for name in ("train_prepare", "train_clip"):
            words = words_of(base, tiny_clip_file, base / "run")
            assert scripts.call(SCRIPTS[name], words) == 0
        yield base
    torch.set_num_threads(threads)


def words_of(base, clip, run, **changes):
    return scripts.settings(DATASET__ROOT=base / "data", OUTPUT_DIR=run, MODEL__CLIP_WEIGHTS=clip, **changes)


@pytest.fixture
def check(capsys, tmp_path, monkeypatch):
    """Call a script and see that it succeeds or says one sentence: its exit code."""
    monkeypatch.chdir(tmp_path)         # a setting may become the name of a folder

    def call(script, words, what):
        code = scripts.call(SCRIPTS[script], words)
        said = capsys.readouterr().err
        assert code in (0, 2), (what, code, said)
        if code:
            lines = [line for line in said.splitlines() if "\r" not in line and line]
            assert said.startswith("error: ") and said.count("\n") == 1 and len(lines[0]) < 1100, (what, said)
        return code
    return call


def test_entries_of_a_structure():
    content = {"a": {"b.weight": 1, "c.weight": [2, {"d": 3}]}}
    assert len(list(entries(content))) == 6 and ("a", "c.weight", 1, "d") in entries(content)
    assert changed(content, ("a", "c.weight", 1), GONE) == {"a": {"b.weight": 1, "c.weight": [2]}}
    assert len(kinds(content)) == 4


@pytest.mark.parametrize("script", ["test", "tools/search", "tools/export_released"])
def test_tampered_checkpoints(script, finished, tiny_clip_file, tmp_path, check):
    whole = torch.load(finished / "run" / "model_last.pth", weights_only=True)
    path, refused = tmp_path / "model.pth", 0
    words = {"test": ["--resume_path", path, *words_of(finished, tiny_clip_file, tmp_path / "out")],
             "tools/search": ["--checkpoint", path, "--gallery", finished / "data" / "cam1" / "0005", "--query",
                              finished / "data" / "cam3" / "0005" / "0001.png", "--output", tmp_path / "found",
                              "--device", "cpu"],
             "tools/export_released": [path, tmp_path / "out.pth"]}[script]
    for entry, value in sample(whole, VALUES, SAMPLED):
        torch.save(changed(whole, entry, value), path)
        refused += check(script, words, (entry, value)) == 2
    assert refused


@pytest.mark.parametrize("script, stage, under_way", [("train_prepare", "prepare", False),
                                                      ("train_prepare", "prepare", True),
                                                      ("train_clip", "finetune", False),
                                                      ("train_clip", "prompt", False)])
def test_tampered_states(script, stage, under_way, finished, tiny_clip_file, tmp_path, check):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    file = StateFile(run / f"{script.removeprefix('train_')}_state.pth")
    whole, _ = file.load()
    state = whole["stages"][stage]
    if under_way:
        last = state["last"]["labels"]
        clusters = {name: int(labels.max()) + 1 for name, labels in last.items()}
        width = len(state["model"]["neck.weight"])
        state["under_way"] = {"labels": last, "setup_seconds": 1.0, "step": 1, "means": {"loss_rgb": 1.0},
                              "memory": {name: {"prototypes": torch.eye(n, width)} for name, n in clusters.items()}}
    state["epoch"] = 1 if under_way else 2
    words = words_of(finished, tiny_clip_file, run, PREPARE__EPOCHS=2, FINETUNE__EPOCHS=2)
    refused = 0
    for entry, value in sample(whole, VALUES, SAMPLED, seed=under_way):
        file.save(changed(whole, entry, value))
        before = (run / "metrics.jsonl").read_bytes()
        code = check(script, words, (entry, value))
        refused += code == 2
        if code == 2 and entry[0] != "stages":
            assert (run / "metrics.jsonl").read_bytes() == before
        shutil.rmtree(run)
        shutil.copytree(finished / "run", run)
    assert refused


def json_files(run):
    """The JSON that a run leaves: name -> how it is written."""
    return {"metrics.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
            "pseudo_labels/manifest.json": json.dumps}


@pytest.mark.parametrize("name", ["metrics.jsonl", "pseudo_labels/manifest.json"])
def test_tampered_json_files_of_a_run(name, finished, tiny_clip_file, tmp_path, check):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "clip_state.pth").unlink(), (run / "clip_state.pth.previous").unlink(missing_ok=True)
    text = (run / name).read_text()
    whole = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    refused = 0
    for entry, value in sample(whole, JSON_VALUES, SAMPLED):
        (run / name).write_text(json_files(run)[name](changed(whole, entry, value)))
        refused += check("train_clip", words_of(finished, tiny_clip_file, run), (entry, value)) == 2
        (run / "clip_state.pth").unlink(missing_ok=True)
    assert refused
