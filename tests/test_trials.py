"""The ten RegDB trials on a miniature tree, and several retrievals from one embedding."""
import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.records import Retrieval
from processor import evaluate
from tools import regdb_trials
from utils.errors import UserError
from utils.modality import Modality


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """RegDB's layout: three trials, four training and two test persons, six images each per modality."""
    root = tmp_path_factory.mktemp("RegDB")
    rng = np.random.default_rng(0)
    (root / "idx").mkdir()
    for sensor in ("Visible", "Thermal"):
        names = []
        for person in range(1, 7):
            folder = root / sensor / str(person)
            folder.mkdir(parents=True)
            colour = np.random.default_rng(person).integers(0, 200, 3)
            for number in range(6):
                pixels = np.clip(colour + rng.integers(0, 40, (40, 20, 3)), 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels)
                (image.convert("L") if sensor == "Thermal" else image).save(folder / f"{number}.bmp")
                names.append((person, f"{sensor}/{person}/{number}.bmp"))
        for trial in range(1, 4):
            people = {"test": [2 * trial - 1, 2 * trial]}
            people["train"] = [p for p in range(1, 7) if p not in people["test"]]
            for split, persons in people.items():
                lines = [f"{name} {persons.index(p)}" for p, name in names if p in persons]
                (root / "idx" / f"{split}_{sensor.lower()}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def settings(root, tmp_path, tiny_clip_file, monkeypatch):
    """KEY VALUE pairs of a run of a second; scripts run in this process and their names are recorded."""
    started = []

    def run(command):
        started.append(command[1].rpartition("/")[2] + " " + command[command.index("DATASET.TRIAL") + 1])
        monkeypatch.setattr(sys, "argv", command[1:])
        try:
            runpy.run_path(command[1], run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    monkeypatch.setattr(regdb_trials, "run_script", run)
    pairs = {"DATASET.ROOT": root, "DATASET.CHECK_COUNTS": False, "DATASET.CACHE_DIR": tmp_path / "cache",
             "OUTPUT_DIR": tmp_path / "runs" / "trial{trial}", "MODEL.CLIP_WEIGHTS": tiny_clip_file,
             "INPUT.HEIGHT": 32, "INPUT.WIDTH": 16, "CLUSTER.K1": 4, "CLUSTER.K2": 2, "CLUSTER.EPS": 0.9,
             "CLUSTER.MIN_SAMPLES": 2, "SAMPLER.INSTANCES": 2, "SAMPLER.CLUSTERS": 2, "PREPARE.EPOCHS": 1,
             "PROMPT.EPOCHS": 1, "FINETUNE.EPOCHS": 1, "DEVICE": "cpu"}
    return [str(word) for pair in pairs.items() for word in pair], started


def results_of(folder, trial):
    return folder / "runs" / f"trial{trial}" / "tests" / "model_last-python-both" / "metrics.json"


def test_trials_are_trained_once_and_tabulated(settings, tmp_path, capsys):
    pairs, started = settings
    regdb_trials.main(["train", "--trials", "1", "2", *pairs])
    assert started == [f"{script}.py {trial}" for trial in (1, 2) for script in ("train_prepare", "train_clip", "test")]
    capsys.readouterr()

    results_of(tmp_path, 2).unlink()
    started.clear()
    regdb_trials.main(["train", *pairs, "DATASET.CACHE", "mmap", "--trials", "1", "2"])      # no other training
    assert started == ["test.py 2"]
    assert "trial 2: train_clip.py is finished" in capsys.readouterr().out

    regdb_trials.main(["table", "--trials", "1", "2", "3", *pairs])
    said = capsys.readouterr().out
    assert "missing: trials 3" in said and said.count(" ± ") == 12
    summary = json.loads((tmp_path / "runs" / "trials.json").read_text())
    assert summary["missing"] == [3] and len(summary["directions"]) == 2
    records = [json.loads(results_of(tmp_path, t).read_text()) for t in (1, 2)]
    for position, row in enumerate(summary["directions"].values()):
        found = [record["results"][position]["mAP"] for record in records]
        assert row["trials"] == [1, 2]
        assert row["mean"]["mAP"] == pytest.approx(np.mean(found))
        assert row["std"]["mAP"] == pytest.approx(np.std(found, ddof=1))
    assert [r["mode"] for r in records[0]["results"]] == ["v2t", "t2v"]

    with pytest.raises(UserError, match="was trained with SEED 1, not 5"):
        regdb_trials.main(["train", "--trials", "1", *pairs, "SEED", "5"])
    results_of(tmp_path, 3).parent.mkdir(parents=True)
    results_of(tmp_path, 3).write_text(json.dumps(records[0]))
    with pytest.raises(UserError, match="results of trial 1; expected trial 3"):
        regdb_trials.main(["table", "--trials", "3", *pairs])

    checkpoint = tmp_path / "runs" / "trial1" / "model_last.pth"
    command = [sys.executable, str(regdb_trials.REPOSITORY / "test.py"), "--resume_path", str(checkpoint)]
    assert regdb_trials.run_script([*command, "DATASET.TRIAL", "2"]) == 2
    assert "trained on RegDB trial 1, not on RegDB trial 2" in capsys.readouterr().err


def test_a_failed_trial_stops_the_run(settings):
    pairs, _ = settings
    with pytest.raises(UserError, match="train_prepare.py of trial 9 ended with exit code 2"):
        regdb_trials.main(["train", "--trials", "9", *pairs])


def test_wrong_command_lines(settings, tmp_path):
    pairs, _ = settings
    with pytest.raises(UserError, match="for every trial"):
        regdb_trials.main(["table", *pairs, "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(UserError, match="--trials are"):
        regdb_trials.main(["table", "--trials", "11", *pairs])
    with pytest.raises(UserError, match="no metrics.json was found"):
        regdb_trials.main(["table", *pairs])
    results_of(tmp_path, 1).parent.mkdir(parents=True)
    results_of(tmp_path, 1).write_text('{"mode": "v2t"}')
    with pytest.raises(UserError, match="metrics.json cannot be read"):
        regdb_trials.main(["table", *pairs])


def test_summary_of_one_trial_has_no_spread():
    record = {name: 0.5 for name in regdb_trials.NUMBERS}
    assert regdb_trials.summarise({"x": {4: record}})["x"]["std"]["mAP"] == 0
    summary = regdb_trials.summarise({"x": {4: record, 5: {**record, "mAP": 0.7}}})["x"]
    assert summary["mean"]["mAP"] == pytest.approx(0.6) and summary["std"]["mAP"] == pytest.approx(0.2 / 2 ** 0.5)


def test_several_retrievals_from_one_embedding(monkeypatch):
    rng = np.random.default_rng(1)
    features = {m: rng.standard_normal((8, 4)).astype(np.float32) for m in Modality}
    embedded = []

    def embed(model, bank, modality, indices, batch_size, precision):
        import torch
        embedded.append((modality, tuple(indices)))
        return {"feature": torch.from_numpy(features[modality][indices])}

    monkeypatch.setattr(evaluate, "embed", embed)
    persons = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    sets = {m: SimpleNamespace(persons=persons, cameras=np.zeros(8, int)) for m in Modality}
    data = SimpleNamespace(test=sets, root="nowhere")
    there = Retrieval("there", "v2t", "regdb", Modality.RGB, np.arange(1, 8), (np.arange(8), np.array([7, 0, 5, 3])),
                      (0, 1))
    back = Retrieval("back", "t2v", "regdb", Modality.IR, np.arange(4), (np.arange(6),), (0,))
    banks = dict.fromkeys(Modality)
    both = evaluate.evaluate(None, data, banks, [there, back], 64, "fp32")
    assert embedded == [(Modality.RGB, tuple(range(8))), (Modality.IR, tuple(range(8)))]
    for retrieval, together in zip((there, back), both):
        alone = evaluate.evaluate(None, data, banks, [retrieval], 64, "fp32")[0]
        assert alone.mean() == together.mean() and len(alone.per_trial) == len(retrieval.trials)
        for trial, result in zip(retrieval.galleries, together.per_trial):
            m = retrieval.query_modality
            distance = 1 - features[m][retrieval.query] @ features[m.other][trial].T
            expected = evaluate.rank_metrics(distance, persons[retrieval.query], persons[trial], protocol="regdb")
            assert result.mAP == pytest.approx(expected.mAP)
