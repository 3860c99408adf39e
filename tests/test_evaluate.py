"""tools/evaluate.py: any method's features, a paired comparison, and re-ranking against a plain reference."""
import json

import numpy as np
import pytest
import torch
from trees import llcm_tree, permutation_file, sysu_tree

from data import llcm, sysu
from processor.evaluate import rank_features
from processor.ranking import save_features
from tools import evaluate
from tools.lib.bootstrap import paired_bootstrap
from tools.lib.feature_file import PROTOCOLS, aligned, per_query, read_features
from tools.lib.rerank import rerank
from utils.errors import UserError
from utils.modality import Modality


def arrays_of(data, noise, seed=0, width=16):
    """What a method's file holds: a direction per person, with noise."""
    rng, arrays = np.random.default_rng(seed), {}
    looks = np.random.default_rng(7).normal(size=(400, width))
    for m, images in data.test.items():
        values = looks[images.persons] + noise * rng.normal(size=(len(images), width))
        arrays |= {f"{m.value}_features": values, f"{m.value}_persons": images.persons,
                   f"{m.value}_cameras": images.cameras, f"{m.value}_paths": np.array(images.paths)}
    return arrays


def unit_features(data, arrays):
    """What `rank_features` takes: Modality -> (positions, features of unit length)."""
    return {m: (np.arange(len(data.test[m])), torch.nn.functional.normalize(torch.from_numpy(
        arrays[f"{m.value}_features"].astype(np.float32)), dim=1)) for m in Modality}


@pytest.fixture
def data(tmp_path):
    root = sysu_tree(tmp_path / "data", images=3, ids={"train": (1,), "val": (2,), "test": tuple(range(3, 11))})
    return sysu.load(root, "SYSU-MM01", check_counts=False)


def save(path, arrays, **changes):
    np.savez(path, **{**arrays, **changes})
    return str(path)


def results(folder):
    record = json.loads((folder / "metrics.json").read_text())
    return {result["mode"]: result for result in record.get("results", [record])}


@pytest.mark.parametrize("protocol, mode", [("sysu", "all"), ("sysu", "indoor"), ("sysu-original-1", "all")])
def test_galleries_are_those_of_the_data_set(data, tmp_path, protocol, mode):
    """Whatever the order of the file's rows, the numbers are those of the data set's own protocol."""
    if protocol != "sysu":
        permutation_file(data.root, trials=4, persons=10, images=3)
    arrays = arrays_of(data, 2.0)
    features = unit_features(data, arrays)
    retrieval = data.retrieval(mode, 4, "python" if protocol == "sysu" else "original-1")
    expected = rank_features(data, retrieval, features)
    order = {m: np.random.default_rng(1).permutation(len(data.test[m])) for m in Modality}
    path = save(tmp_path / "toy.npz", {name: array[order[Modality(name.split("_")[0])]]
                                       for name, array in arrays.items()})
    evaluate.main([path, "--protocol", protocol, "--trials", "4", "--root", str(data.root)])
    found = results(tmp_path / "toy-evaluated")
    assert set(found) == {"all", "indoor"} and found[mode]["protocol"] == retrieval.protocol
    for name, value in expected.mean().items():
        assert found[mode][name] == pytest.approx(value, abs=1e-9), name
    assert 0.1 < found[mode]["mAP"] < 0.95
    page = (tmp_path / "toy-evaluated" / "report.html").read_text()
    assert "Ranked lists" in page and page.count("data:image/jpeg") > 10
    assert (tmp_path / "toy-evaluated" / "ranking_all.csv").read_text().count("\n") > 100


def test_files_of_our_own_tests_need_no_protocol(data, tmp_path):
    arrays = arrays_of(data, 2.0)
    features = unit_features(data, arrays)
    retrievals = [data.retrieval(mode, 3) for mode in data.modes]
    evaluations = [rank_features(data, retrieval, features) for retrieval in retrievals]
    path = save_features(tmp_path, data, retrievals, evaluations)
    evaluate.main([str(path), "--output", str(tmp_path / "out")])
    found = results(tmp_path / "out")
    for retrieval, evaluation in zip(retrievals, evaluations):
        result = found[retrieval.mode]
        assert {name: result[name] for name in evaluation.mean()} == evaluation.mean()
        assert (result["protocol"], result["dataset"], result["trials"], result["reranked"]) == (
            retrieval.protocol, "SYSU-MM01", 3, False)
    evaluate.main([str(path), "--output", str(tmp_path / "one"), "--mode", "indoor"])
    assert set(results(tmp_path / "one")) == {"indoor"}
    with pytest.raises(UserError, match="holds no test of mode v2t; it holds all and indoor"):
        evaluate.main([str(path), "--mode", "v2t"])


def test_llcm_and_regdb(tmp_path):
    data = llcm.load(llcm_tree(tmp_path / "LLCM"), check_counts=False)
    path = save(tmp_path / "toy.npz", arrays_of(data, 1.0))
    evaluate.main([path, "--protocol", "llcm", "--output", str(tmp_path / "llcm"), "--trials", "2"])
    evaluate.main([path, "--protocol", "regdb", "--output", str(tmp_path / "regdb")])
    for name in ("llcm", "regdb"):
        assert set(results(tmp_path / name)) == {"v2t", "t2v"}


def test_two_methods_are_compared_on_the_same_queries(data, tmp_path, capsys):
    first = save(tmp_path / "ours.npz", arrays_of(data, 2.5))
    arrays = arrays_of(data, 1.2, seed=1)
    order = {m: np.random.default_rng(3).permutation(len(data.test[m])) for m in Modality}
    second = save(tmp_path / "theirs.npz", {name: array[order[Modality(name.split("_")[0])]]
                                            for name, array in arrays.items()})
    evaluate.main([first, second, "--protocol", "sysu", "--mode", "all", "--trials", "3"])
    rows = json.loads((tmp_path / "theirs-evaluated" / "comparison.json").read_text())["differences"]
    ours, theirs = (results(tmp_path / f"{name}-evaluated")["all"] for name in ("ours", "theirs"))
    assert {row["number"]: row["difference"] for row in rows} == pytest.approx(
        {name: theirs[name] - ours[name] for name in ("rank1", "mAP")})
    assert all(row["low"] <= row["difference"] <= row["high"] and row["p"] < 0.01 and row["queries"] == 48
               for row in rows)
    assert "theirs.npz minus " in capsys.readouterr().out
    same = save(tmp_path / "same.npz", arrays_of(data, 2.5))
    evaluate.main([first, same, "--protocol", "sysu", "--mode", "all", "--trials", "2"])
    rows = json.loads((tmp_path / "same-evaluated" / "comparison.json").read_text())["differences"]
    assert all((row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1) for row in rows)


def test_queries_without_a_match_are_left_out(data):
    arrays = arrays_of(data, 2.0)
    features = {m: torch.from_numpy(arrays[f"{m.value}_features"]) for m in Modality}
    data.test[Modality.IR].persons[:2] = 399
    values = per_query(data, data.retrieval("all", 2), features)
    assert np.isnan(values["mAP"]).tolist() == np.isnan(values["rank1"]).tolist() == [True] * 2 + [False] * 46


def test_bootstrap():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    found = paired_bootstrap(noise + 0.1, np.random.default_rng(1))
    spread = noise.std() / 20
    assert found.mean == pytest.approx(noise.mean() + 0.1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.05)
    z = found.mean / spread
    assert found.p == pytest.approx(2 * (1 - torch.distributions.Normal(0, 1).cdf(torch.tensor(z)).item()), abs=0.02)
    assert paired_bootstrap(noise + 0.1, np.random.default_rng(1)) == found
    assert paired_bootstrap(noise + 0.1, np.random.default_rng(2)) != found
    assert paired_bootstrap(np.ones(5), np.random.default_rng(1), resamples=99).p == 2 / 100
    with pytest.raises(ValueError, match="no query"):
        paired_bootstrap([], rng)


def reference_rerank(query, gallery, k1, k2, share):
    """The published code of Zhong et al., on the matrix of all squared Euclidean distances."""
    features = np.concatenate([query, gallery])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distance = 2 - 2 * features @ features.T
    np.fill_diagonal(distance, 0)
    original = (distance / distance.max(axis=0)).T
    rank, n = np.argsort(original, axis=1), len(features)

    def reciprocal(i, k):
        forward = rank[i, :k + 1]
        return forward[(rank[forward, :k + 1] == i).any(axis=1)]

    encoding = np.zeros((n, n))
    for i in range(n):
        near = reciprocal(i, k1)
        expanded = near
        for candidate in near:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(theirs, near)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        expanded = np.unique(expanded)
        weight = np.exp(-original[i, expanded])
        encoding[i, expanded] = weight / weight.sum()
    if k2 != 1:
        encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(n)])
    shared = np.stack([np.minimum(encoding[i], encoding).sum(axis=1) for i in range(len(query))])
    jaccard = 1 - shared / (2 - shared)
    return ((1 - share) * jaccard + share * original[:len(query)])[:, len(query):]


@pytest.mark.parametrize("k1, k2, share", [(20, 6, 0.3), (7, 3, 0.1), (6, 1, 0.5), (5, 2, 0.0)])
def test_reranking_against_the_published_code(k1, k2, share):
    rng = np.random.default_rng(k1)
    looks = rng.normal(size=(9, 12))
    query, gallery = (looks[np.arange(n) % 9] + 0.8 * rng.normal(size=(n, 12)) for n in (31, 64))
    expected = reference_rerank(query.copy(), gallery.copy(), k1, k2, share)
    found = rerank(torch.from_numpy(query).float(), torch.from_numpy(gallery).float(), k1, k2, share)
    assert found.shape == (31, 64) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_reranked_numbers_are_labelled(data, tmp_path, capsys):
    path = save(tmp_path / "toy.npz", arrays_of(data, 2.0))
    evaluate.main([path, "--protocol", "sysu", "--mode", "all", "--trials", "2"])
    plain = results(tmp_path / "toy-evaluated")["all"]
    evaluate.main([path, "--protocol", "sysu", "--mode", "all", "--trials", "2", "--rerank"])
    found = results(tmp_path / "toy-evaluated")["all"]
    assert found["protocol"] == plain["protocol"] + ", re-ranked (k1 20, k2 6, 0.3)" and found["reranked"]
    assert found["mAP"] != plain["mAP"] and "re-ranked (k1 20" in capsys.readouterr().out
    assert "re-ranked (k1 20" in (tmp_path / "toy-evaluated" / "report.html").read_text()
    # the lists are those of the re-ranked distances too
    rows = [line.split(",") for line in (tmp_path / "toy-evaluated" / "ranking_all.csv").read_text().splitlines()[1:]]
    first = [int(row[-1]) for row in rows if row[4] == "1"]
    assert np.mean(first) == pytest.approx(found["rank1"])


@pytest.mark.parametrize("change, sentence", [
    ({"rgb_paths": None}, "holds no rgb_paths"),
    ({"rgb_persons": np.arange(3)}, r"rgb_persons has shape \(3,\), but there are 96 rgb_features"),
    ({"ir_paths": np.array(["a", "b"])}, r"ir_paths has shape \(2,\), but there are 48 ir_features"),
    ({"ir_paths": np.arange(48)}, "ir_paths are int64; expected text"),
    ({"ir_paths": np.array(["a"] * 48)}, "ir_paths name an image twice"),
    ({"ir_features": np.zeros((48, 8))}, "features of 48 images are not finite or all 0, such as cam3/0003/0001.jpg"),
    ({"ir_features": np.ones((48, 8))}, "rgb_features have 16 numbers an image, ir_features 8"),
    ({"ir_features": np.ones(48)}, r"ir_features are float64 of shape \(48,\); expected numbers"),
    ({"all_query": np.arange(3), "all_protocol": "x", "all_rule": "sysu"}, "holds queries of all and no gallery"),
    ({"all_query": np.arange(3)}, "holds no all_protocol"),
    ({"all_query": np.array([99]), "all_protocol": "x", "all_rule": "sysu", "all_gallery_0": np.arange(3)},
     "are no rows of the 48 ir_features")])
def test_wrong_files_are_one_sentence(data, tmp_path, change, sentence):
    arrays = {**arrays_of(data, 1.0), **change}
    path = save(tmp_path / "bad.npz", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=sentence):
        evaluate.main([path, "--protocol", "sysu"])
    assert not (tmp_path / "bad-evaluated").exists()


def test_other_mistakes(data, tmp_path):
    def refuses(sentence, *words):
        with pytest.raises(UserError, match=sentence):
            evaluate.main(list(map(str, words)))

    good = save(tmp_path / "good.npz", arrays_of(data, 1.0))
    (tmp_path / "text.npz").write_text("no arrays")
    refuses("features .*none.npz cannot be read", tmp_path / "none.npz")
    refuses("features .*text.npz cannot be read", tmp_path / "text.npz")
    refuses("holds no queries and galleries; name the protocol", good)
    refuses("TEST.MODE is 'v2t'; SYSU-MM01 has all and indoor", good, "--protocol", "sysu", "--mode", "v2t")
    refuses("--trials: '0' is no whole number from 1", good, "--protocol", "sysu", "--trials", "0")
    refuses("rand_perm_cam.mat is missing", good, "--protocol", "sysu-original-1", "--root", tmp_path)
    arrays = arrays_of(data, 1.0)
    fewer = save(tmp_path / "fewer.npz", {name: array[1:] for name, array in arrays.items()})
    refuses("fewer.npz holds 95 rgb images, .*good.npz 96, and cam1/0003/0001.jpg is not in the first", good, fewer,
            "--protocol", "sysu")
    other = save(tmp_path / "other.npz", arrays, ir_persons=arrays["ir_persons"][::-1])
    with pytest.raises(UserError, match="name other persons for cam3/0003/0001.jpg"):
        aligned(read_features(other), read_features(good))


def test_the_protocols_of_the_command_line_are_all():
    assert evaluate.DRAWN == tuple(PROTOCOLS)
