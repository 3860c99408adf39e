"""Results of test.py as a run's folder holds them, without a test."""
import json

import numpy as np
import yaml

from configs.defaults import with_defaults
from configs.identity import identity, results_folder
from report.run_files import NUMBERS
from utils.checkpoint import file_digest


def add_test(folder, number, of="model_last", mode="all", protocol="tiny", images="", epoch=3, record=None,
             queries=None, **settings):
    """Write a checkpoint, unless it is there, and the results of its test, all of them `number`: their metrics.json.

    Args: of: name of the checkpoint, "baseline" for none; record: more of it; queries: (Q,) 0 or 1 in
        place of `number`, stored as per_query.npz; settings: of the test, SECTION__KEY.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{of}.pth"
    if of != "baseline" and not path.exists():
        path.write_bytes(str(path).encode())
    known = with_defaults({"DATASET.NAME": "tiny", **{key.replace("__", "."): v for key, v in settings.items()}})
    tested = identity("" if of == "baseline" else file_digest(path), images, mode, known)
    output = results_folder(folder, "" if of == "baseline" else path, tested) / "metrics.json"
    output.parent.mkdir(parents=True)
    if queries is not None:     # the first match at rank 1 or 5, in each of two trials
        number, queries = float(np.mean(queries)), np.stack([queries] * 2)
        np.savez(output.with_name("per_query.npz"), **{
            f"{mode}_first_match": np.where(queries == 1, 1, 5), f"{mode}_average_precision": queries})
    selection = "no training" if of == "baseline" else "best Rank-1 on test data" if "best" in of else "last epoch"
    output.write_text(json.dumps({
        "protocol": protocol, "mode": mode, "checkpoint": "baseline CLIP" if of == "baseline" else str(path),
        "epoch": epoch, "selection": selection,
        "identity": tested, "queries": 1200, "scored": 1100, **dict.fromkeys(NUMBERS, number), **(record or {})}))
    return output


def record(folder, value=0.5, checkpoint="model_last", seed=1, protocol="SYSU-MM01 all-search", images="", tested=None,
           mode="all", queries=None, **settings):
    """Write a run's folder as a script leaves it, with one test. Args: tested: settings of the test; as `add_test`."""
    settings = {"SEED": seed, "DATASET": {"NAME": "sysu", "TRIAL": 1}, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(json.dumps(settings))
    return add_test(folder, value, checkpoint, mode, protocol, images=images, record={"dataset": "SYSU-MM01"},
                    queries=queries, DATASET__NAME="sysu", **(tested or {}))


def runs_of(folder, values, **settings):
    """Folders of runs with seeds 1, 2, ...: their Rank-1 after the epochs."""
    folders = []
    for seed, numbers in enumerate(values, start=1):
        path = folder / f"seed{seed}"
        path.mkdir(parents=True)
        (path / "config.yml").write_text(yaml.safe_dump({"SEED": seed, "OUTPUT_DIR": str(path), **settings}))
        (path / "metrics.jsonl").write_text("".join(json.dumps(
            {"stage": "prepare", "epoch": epoch, "lr": 1e-4, "loss_my_own": 0.5, "test": {
                "protocol": "tiny", "mode": "all", **dict.fromkeys(NUMBERS, value),
                "cmc": [min(1.0, value + 0.01 * rank) for rank in range(20)]}}) + "\n"
            for epoch, value in enumerate(numbers, start=1)))
        folders.append(path)
    return folders
