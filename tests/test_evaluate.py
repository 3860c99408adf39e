"""tools/evaluate.py: any method's features, a paired comparison, and re-ranking against a plain reference."""
import csv
import json
import re

import numpy as np
import pytest
import torch
from trees import people_tree, permutation_file

from data import sysu
from data.records import ImageSet
from processor.evaluate import rank_features
from processor.ranking import save_features
from tests.test_clustering import released_distance
from tools import evaluate
from tools.lib.feature_file import PROTOCOLS, as_data_set, read_features
from tools.lib.rerank import rerank
from utils.errors import UserError
from utils.modality import Modality


def arrays_of(sets, noise, seed=0, width=16):
    """What a method's file holds of `ImageSet`s: a direction per person, with noise."""
    rng, arrays = np.random.default_rng(seed), {}
    looks = np.random.default_rng(7).normal(size=(400, width))
    for m, images in sets.items():
        values = looks[images.persons] + noise * rng.normal(size=(len(images), width))
        arrays |= {f"{m.value}_features": values, f"{m.value}_persons": images.persons,
                   f"{m.value}_cameras": images.cameras, f"{m.value}_paths": np.array(images.paths)}
    return arrays


def shuffled(arrays):
    """The same images in another order."""
    order = {m.value: np.random.default_rng(1).permutation(len(arrays[f"{m.value}_paths"])) for m in Modality}
    return {name: array[order[name.split("_")[0]]] for name, array in arrays.items()}


def ranked(data, retrieval, arrays, measure=None):
    """The `Evaluation` of a file's features."""
    return rank_features(data, retrieval, {m: (np.arange(len(data.test[m])), torch.nn.functional.normalize(
        torch.from_numpy(arrays[f"{m.value}_features"].astype(np.float32)), dim=1)) for m in Modality}, measure)


@pytest.fixture
def data(tmp_path):
    root = people_tree(tmp_path / "data", images=3, ids={"train": (1,), "val": (2,), "test": tuple(range(3, 11))})
    return sysu.load(root, check_counts=False)


def save(path, arrays, **changes):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{**arrays, **changes})
    return path


def run(*words):
    """Call the tool; the miniature data sets are other data than the published ones."""
    evaluate.main([*map(str, words), "--other_data"])


def results(folder):
    record = json.loads((folder / "metrics.json").read_text())
    return {result["mode"]: result for result in record.get("results", [record])}


@pytest.mark.parametrize("protocol", ["sysu", "sysu-original-1"])
def test_galleries_are_those_of_the_data_set(data, tmp_path, protocol):
    """Whatever the order of the file's rows, the numbers are those of the data set's own protocol."""
    permutation_file(data.root, trials=4, persons=10, images=3)
    arrays = arrays_of(data.test, 2.0)
    run(save(tmp_path / "toy.npz", shuffled(arrays)), "--protocol", protocol, "--trials", 4, "--root", data.root)
    found = results(tmp_path / "toy-evaluated")
    assert set(found) == {"all", "indoor"}
    for mode, result in found.items():
        retrieval = data.retrieval(mode, 4, PROTOCOLS[protocol][-1])
        assert result["protocol"] == f"{retrieval.protocol}, on other data"
        for name, value in ranked(data, retrieval, arrays).mean().items():
            assert result[name] == pytest.approx(value, abs=1e-9), name
        assert 0.1 < result["mAP"] < 0.95


def test_files_of_our_own_tests_need_no_protocol(data, tmp_path, capsys):
    """Every place that holds a number says how many queries were scored; two have no match here."""
    data.test[Modality.IR].persons[:2] = 399
    arrays, retrievals = arrays_of(data.test, 2.0), [data.retrieval(mode, 3) for mode in data.modes]
    evaluations = [ranked(data, retrieval, arrays) for retrieval in retrievals]
    path, out = save_features(tmp_path, data, retrievals, evaluations), tmp_path / "out"
    evaluate.main([str(path), "--output", str(out)])
    assert capsys.readouterr().out.count("46 of 48") == 2
    for retrieval, evaluation in zip(retrievals, evaluations):
        result = results(out)[retrieval.mode]
        assert {name: result[name] for name in evaluation.mean()} == evaluation.mean()
        assert (result["protocol"], result["dataset"], result["trials"], result["reranked"]) == (
            retrieval.protocol, "SYSU-MM01", 3, False)
        assert (result["scored"], result["queries"], result["per_trial"][2]["scored"]) == (46, 48, 46)
    with np.load(out / "per_query.npz") as stored:
        precision, first = stored["all_average_precision"], stored["all_first_match"]
    assert np.isnan(precision).tolist() == np.isnan(first).tolist() == [[True] * 2 + [False] * 46] * 3
    assert np.nanmean(precision) == pytest.approx(results(out)["all"]["mAP"])
    assert np.mean(first[:, 2:] == 1) == pytest.approx(results(out)["all"]["rank1"])
    evaluate.main([str(path), "--output", str(out)])        # the same may be written again, nothing else
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UserError, match="out holds metrics.json of a run, of other features or of another test"):
        run(path, "--mode", "indoor", "--output", out)
    np.savez(path, **np.load(path), more=0)
    with pytest.raises(UserError, match="out holds metrics.json"):
        evaluate.main([str(path), "--output", str(out)])
    (out / "metrics.json").rename(out / "config.yml")
    with pytest.raises(UserError, match="out holds config.yml of a run"):
        evaluate.main([str(path), "--output", str(out)])
    (out / "config.yml").rename(out / "metrics.json")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_counts_and_cameras_are_compared_with_the_data_sets(tmp_path):
    """A file with the published counts: 56 of 96 persons are in the indoor cameras, 3,803 images are infrared."""
    persons = {1: 56, 2: 56, 4: 96, 5: 93}      # of each visible camera
    rows = {Modality.RGB: [(person, camera) for camera, count in persons.items() for person in range(count)],
            Modality.IR: [(i % 96, 3 + 3 * (i % 2)) for i in range(3803)]}

    def choose(step=1, first=1, other_data=False):
        sets = {m: ImageSet.from_rows(m, [(f"{m.value}{i}", person, camera - 1 + first) for i, (person, camera)
                                          in enumerate(found[::step])]) for m, found in rows.items()}
        file = read_features(save(tmp_path / "some.npz", arrays_of(sets, 1.0, width=2)))
        _, data, retrievals = as_data_set(file, "sysu", other_data=other_data)
        for others in ("regdb", "llcm"):
            assert [retrieval.mode for retrieval in as_data_set(file, others, other_data=True)[2]] == ["v2t", "t2v"]
        return [data.name, *(retrieval.protocol for retrieval in retrievals)]

    assert not any("other data" in text for text in choose())
    for changes, sentence in (({"first": 0}, r"rgb images of cameras \[0, 1, 3, 4\] instead of .*149 all-search"),
                              ({"step": 2}, r"ir images of cameras \[3\] instead of .*1,902 test IR .* of 3,803")):
        with pytest.raises(UserError, match=f"some.npz does not hold the test images of SYSU-MM01: {sentence}"):
            choose(**changes)
        assert all("on other data" in text for text in choose(**changes, other_data=True))


def test_two_methods_are_compared_on_the_same_queries(data, tmp_path, capsys):
    """The first minus the second, under names that differ; both files are called the same."""
    data.test[Modality.IR].persons[:2] = 399
    first = save(tmp_path / "ours" / "x.npz", arrays_of(data.test, 1.2, seed=1))
    second = save(tmp_path / "theirs" / "x.npz", shuffled(arrays_of(data.test, 2.5)))
    out = tmp_path / "out"
    run(first, second, "--protocol", "sysu", "--mode", "all", "--trials", 3, "--output", out)
    (path,) = (out / "ours").glob("comparison-theirs-*.json")
    rows = json.loads(path.read_text())["differences"]
    ours, theirs = (results(out / name)["all"] for name in ("ours", "theirs"))
    assert {row["number"]: row["mean"] for row in rows} == pytest.approx(
        {name: ours[name] - theirs[name] for name in ("rank1", "mAP")})
    assert all(0 < row["low"] <= row["mean"] <= row["high"] and row["p"] < 0.01 for row in rows)
    assert all(row["scored"] == 46 for row in rows)
    printed = capsys.readouterr().out
    assert "ours against theirs, percent" in printed
    assert re.search(r"all +Rank-1  \+.* p 0.0002  better, over 46 queries alone", printed)


def test_reranking_against_the_published_code():
    """It divides the squared distances of each image by its largest one."""
    rng, (k1, k2, share) = np.random.default_rng(20), (20, 6, 0.3)
    looks = rng.normal(size=(9, 12))
    query, gallery = (looks[np.arange(n) % 9] + 0.8 * rng.normal(size=(n, 12)) for n in (31, 64))
    features = np.concatenate([query, gallery])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distance = 2 - 2 * features @ features.T
    np.fill_diagonal(distance, 0)
    farthest = distance.max(axis=1)
    jaccard = released_distance(features, distance.argsort(axis=1), k1, k2, farthest)
    expected = (1 - share) * jaccard + share * distance / farthest[:, None]
    found = rerank(torch.from_numpy(query).float(), torch.from_numpy(gallery).float(), k1, k2, share)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:31, 31:], atol=2e-5)


def test_reranked_numbers_are_labelled(data, tmp_path, capsys):
    arrays, folder = arrays_of(data.test, 2.0), tmp_path / "toy-evaluated-reranked"
    run(save(tmp_path / "toy.npz", arrays), "--protocol", "sysu", "--mode", "all", "--trials", 2, "--rerank")
    found, plain = results(folder)["all"], ranked(data, data.retrieval("all", 2), arrays)
    assert found["protocol"] == plain.protocol + ", on other data, re-ranked (k1 20, k2 6, 0.3)" and found["reranked"]
    assert found["mAP"] != plain.mean()["mAP"] and "re-ranked (k1 20" in capsys.readouterr().out
    with open(folder / "ranking_all.csv", newline="") as file:      # the lists are those of these distances too
        first = [int(row["match"]) for row in csv.DictReader(file) if row["rank"] == "1"]
    assert np.mean(first) == pytest.approx(found["rank1"])


@pytest.mark.parametrize("change, sentence", [
    ({"rgb_paths": None}, "holds no rgb_paths"),
    ({"ir_paths": np.array(["a"] * 48)}, "ir_paths name an image twice"),
    ({"ir_features": np.zeros((48, 8))}, "features of 48 images are not finite or all 0, such as cam3/0003/0001.jpg"),
    ({"ir_features": np.ones((48, 8))}, "rgb_features have 16 numbers an image, ir_features 8"),
    ({"ir_features": np.ones(48)}, r"ir_features are float64 of shape \(48,\); expected numbers")])
def test_wrong_files_are_one_sentence(data, tmp_path, change, sentence):
    arrays = {**arrays_of(data.test, 1.0), **change}
    path = save(tmp_path / "bad.npz", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=sentence):
        run(path, "--protocol", "sysu")
    assert not (tmp_path / "bad-evaluated").exists()


def test_other_mistakes(data, tmp_path):
    def refuses(sentence, *words):
        with pytest.raises(UserError, match=sentence):
            run(*words)

    arrays = arrays_of(data.test, 1.0)
    good = save(tmp_path / "good.npz", arrays)
    fewer = save(tmp_path / "fewer.npz", {name: array[1:] for name, array in arrays.items()})
    refuses("fewer.npz holds 95 rgb images, .*good.npz 96, and cam1/0003/0001.jpg is in one alone", good, fewer,
            "--protocol", "sysu")
    other = save(tmp_path / "other.npz", arrays, ir_persons=arrays["ir_persons"][::-1])
    refuses("name other persons for cam3/0003/0001.jpg", good, other, "--protocol", "sysu")
