"""The bounds of tools/bounds.py, which alone tells training the identities."""
import json

import numpy as np
import pytest
import scripts
import torch
import trees

from data.pseudo_labels import FILE_NAMES
from loss.method import EpochStart
from loss.methods import METHODS
from tools import bounds
from utils.modality import Modality

PERSONS = {Modality.RGB: np.array([7, 7, 7, 8, 8, 9, 9]), Modality.IR: np.array([8, 8, 7, 7, 7, 7, 5])}
CLUSTERS = {Modality.RGB: np.array([0, 0, 1, 2, 2, 3, -1]), Modality.IR: np.array([0, 0, 1, 2, 2, 2, 3])}
FEATURES = {m: torch.randn(7, 4, generator=torch.Generator().manual_seed(i)) for i, m in enumerate(Modality)}
START = EpochStart({"feature": FEATURES}, CLUSTERS, None)


@pytest.mark.parametrize("name", ["cclnet", "pgm", "rpnr"])
def test_true_links_join_clusters_of_one_person(name):
    links = bounds.true_links(CLUSTERS, PERSONS)
    assert links.rgb_to_ir.tolist() == [2, 2, 0, -1]        # of person 7's two IR clusters the larger one
    assert links.ir_to_rgb.tolist() == [2, 0, 0, -1]
    method = bounds.with_true_links(METHODS[name], PERSONS)(cross_epoch=9)
    assert method.start(START, 1) is CLUSTERS
    assert [partner.tolist() for partner in method.links()] == [partner.tolist() for partner in links]
    if name != "rpnr":      # which calibrates them, as it does clusters
        for method in (METHODS[name], METHODS["none"]):
            labels = bounds.with_true_labels(method, PERSONS)(cross_epoch=9).start(START, 1)
            assert [labels[m].tolist() for m in Modality] == [[0, 0, 0, 1, 1, 2, 2], [2, 2, 1, 1, 1, 1, 0]]


def test_the_supervised_bound_has_one_prototype_for_a_person():
    method = bounds.supervised(METHODS["cclnet"], PERSONS)(temperature=0.5)
    labels = method.start(START, 1)         # persons 5, 7, 8 and 9
    assert [labels[m].tolist() for m in Modality] == [[1, 1, 1, 2, 2, 3, 3], [2, 2, 1, 1, 1, 1, 0]]
    rows = torch.cat(list(FEATURES.values()))
    both = torch.from_numpy(np.concatenate(list(labels.values())))
    means = torch.nn.functional.normalize(torch.stack([rows[both == person].mean(0) for person in range(4)]), dim=1)
    torch.testing.assert_close(method.prototypes()["persons"], means)
    assert method.links() is None and method.unifies(1)


@pytest.mark.parametrize("bound, method, folder", [("links", "pgm", "true-links"),
                                                   ("supervised", "cclnet", "supervised")])
def test_a_bound_is_trained_in_a_folder_of_its_own(bound, method, folder, tmp_path, tiny_clip_file, monkeypatch):
    monkeypatch.setattr("report.write.save_stage_page", lambda *arguments: None)
    name = folder if bound == "supervised" else f"{method}-{folder}"
    monkeypatch.setitem(METHODS, name, None)        # the tool enters it; undone here
    words = scripts.settings(DATASET__ROOT=trees.people_tree(tmp_path / "data"), MODEL__CLIP_WEIGHTS=tiny_clip_file,
                             OUTPUT_DIR=tmp_path / "run", PREPARE__EPOCHS=2, METHOD__NAME=method)
    monkeypatch.chdir(scripts.REPOSITORY)
    assert scripts.call(bounds, [bound, "train_prepare", *words]) == 0
    folder = tmp_path / f"run-{folder}"
    assert not (tmp_path / "run").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if bound == "supervised":
        assert rows[-1]["loss_id_rgb"] > 0 and "links" not in rows[-1]
    else:
        assert rows[-1]["links"] > 0 and all(row["link_accuracy"] == 1 for row in rows if row["links"])
    assert all((row["ari_rgb"] == row["ari_ir"] == 1) == (bound != "links") for row in rows)
    labels = [np.load(folder / "pseudo_labels" / name) for name in FILE_NAMES.values()]
    assert bound == "links" or all(sorted(set(of)) == [0, 1, 2] for of in labels)
