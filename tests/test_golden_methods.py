"""PGM and RPNR: equal to the numbers of their released code, through the classes and functions that training uses."""
import dataclasses

import loss.association
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss.association import Links, link, matching_cost, optimal_transport, progressive, sinkhorn

import loss.calibration
import loss.rpnr as rpnr
from configs.defaults import load_config
from data.pseudo_labels import cluster_means
from loss.calibration import calibrate, dense_means, density
from loss.cluster_memory import ClusterMemory, HardMemory
from loss.methods import method_class
from loss.rpnr import MeanHardMemory, hybrid_means, relation_loss
from processor.setup import train_settings
from utils.modality import Modality

MEMORIES = {"hard": HardMemory, "plain": ClusterMemory}
KINDS = [f"{parity}{plain}" for parity in ("odd", "even", "unmatched") for plain in ("", "_plain")]


def close(found, expected, share):
    """Compare arrays up to a share of the largest entry."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * float(np.abs(expected).max()))


def same_loss(found, expected):
    found = found.detach() if isinstance(found, torch.Tensor) else found
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=5e-6)


def rows(g, name):
    return torch.from_numpy(g[name])


def settings(g, **changes):
    """`MemorySettings` with a file's numbers; the modalities meet from epoch 1 on, which is epoch 0 there."""
    numbers = {"temperature": float(g["temp"]), "momentum": float(g["momentum"]), "swap_epoch": 1}
    return dataclasses.replace(train_settings(load_config(), 120).memory, **numbers, **changes)


@pytest.mark.parametrize("kind", MEMORIES)
def test_pgm_memory(golden_methods, kind):
    g = golden_methods.load("pgm_memory")
    memory = MEMORIES[kind](rows(g, "memory"), float(g["temp"]), float(g["momentum"]))
    for step in range(int(g["steps"])):
        x, labels = rows(g, f"features{step}").requires_grad_(), g[f"labels{step}"]
        close(F.normalize(x, dim=1) @ memory.prototypes.T / memory.temperature, g[f"{kind}_logits{step}"], 2e-5)
        loss = memory.loss(x, labels)
        loss.backward()
        memory.update(x, labels)
        same_loss(loss, g[f"{kind}_loss{step}"])
        close(x.grad, g[f"{kind}_gradient{step}"], 1e-4)
        close(memory.prototypes, g[f"{kind}_memory_after{step}"], 2e-5)


def step_of(memory, g):
    """Take a step of a method: its losses, the gradients of both batches; the memories are renewed."""
    x = {m: rows(g, f"features_{m.value}").requires_grad_() for m in Modality}
    labels = {m: g[f"labels_{m.value}"] for m in Modality}
    losses = memory.losses(x, labels)
    sum(losses.values()).backward()
    order = [f"{visit.memory} memory, {visit.batch.value} batch" for visit in memory.visits(labels)]
    memory.update(x, labels)
    return {name: float(loss.detach()) for name, loss in losses.items()}, {m: x[m].grad for m in Modality}, order


@pytest.mark.parametrize("gradients", ["released", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_pgm_step(golden_methods, kind, gradients):
    g = golden_methods.load("pgm_step")
    links = Links(g["r2i"], g["i2r"])
    if kind.startswith("unmatched"):
        links = Links(*(np.full_like(side, -1) for side in links))
    s = settings(g, method="pgm", renewal="plain" if kind.endswith("_plain") else "", gradients=gradients,
                 cross_weight=float(g["cross_weight"]))
    start = {m: rows(g, f"memory_{m.value}") for m in Modality}
    memory = method_class("pgm")(start, int(g[f"{kind}_epoch"]) + 1, s, links)
    losses, found, order = step_of(memory, g)
    same_loss(sum(losses.values()), g[f"{kind}_loss"])
    for m in Modality:
        same_loss(losses[f"loss_{m.value}"], g[f"{kind}_loss_{m.value}"])
        name = {"released": "gradient", "exact": "exact_gradient"}[gradients]
        close(found[m], g[f"{kind}_{name}_{m.value}"], 1e-4)
        close(memory.memories[m].prototypes, g[f"{kind}_memory_{m.value}_after"], 2e-5)
    same_loss(losses.get("loss_cross", 0) / s.cross_weight, g[f"{kind}_loss_cross"])
    assert ("loss_cross" in losses) != kind.startswith("unmatched")
    assert order == g[f"{kind}_backward_order"].tolist()


def test_pgm_matching(golden_methods):
    """Where the SYSU-MM01 script gives up (fewer visible clusters), our rule is the RegDB script's."""
    g = golden_methods.load("pgm_matching")
    for case in g["cases"]:
        means = [rows(g, f"centroids_{m.value}_{case}") for m in Modality]
        links = link(progressive, *means)
        script = "sysu" if len(means[0]) >= len(means[1]) else "regdb"
        np.testing.assert_array_equal(links.ir_to_rgb, g[f"{script}_i2r_{case}"])
        np.testing.assert_array_equal(links.rgb_to_ir, g[f"{script}_r2i_{case}"])


def test_rpnr_calibration(golden_methods, monkeypatch):
    g = golden_methods.load("rpnr_calibration")
    features, labels, threshold = rows(g, "features"), g["labels"], float(g["threshold"])
    monkeypatch.setattr(loss.calibration, "SIMILAR", threshold)
    close(cluster_means(features, labels), g["centroids"], 2e-5)
    found = density(features, labels, threshold)
    np.testing.assert_array_equal(found.astype(np.float32), g["density"])
    for script in ("sysu", "regdb"):
        top = int(g[f"{script}_top_k"])
        close(dense_means(features, labels, found, top), g[f"{script}_prototypes"], 2e-5)
        np.testing.assert_array_equal(calibrate(features, labels, top), g[f"{script}_corrected_labels"])


def test_rpnr_optimal_transport(golden_methods, monkeypatch):
    g = golden_methods.load("rpnr_ot")
    numbers = float(g["reg"]), int(g["max_iterations"]), float(g["stop_threshold"])
    monkeypatch.setattr(loss.association, "SINKHORN", numbers)
    for case in g["cases"]:
        means = [rows(g, f"centroids_{m.value}_{case}") for m in Modality]
        plan, iterations = sinkhorn(matching_cost(*(F.normalize(x, dim=1) for x in means)), *numbers)
        assert iterations == int(g[f"iterations_{case}"])
        close(plan, g[f"plan_{case}"], 2e-5)
        links = link(optimal_transport, *means)
        np.testing.assert_array_equal(links.ir_to_rgb, g[f"i2r_{case}"])
        np.testing.assert_array_equal(links.rgb_to_ir, g[f"r2i_{case}"])


def mean_hard(g, name):
    """A memory whose 2 K rows are those of a file."""
    mean, hard = rows(g, name).chunk(2)
    memory = MeanHardMemory(mean, float(g["temp"]), float(g["momentum"]), float(g["relu_margin"]), float(g["half"]))
    memory.load_state_dict({"prototypes": mean, "hard": hard})
    return memory


def both(memory):
    return torch.cat([memory.prototypes, memory.hard])


def test_rpnr_memory(golden_methods):
    g = golden_methods.load("rpnr_memory")
    memory = mean_hard(g, "memory")
    for step in range(int(g["steps"])):
        x, labels = rows(g, f"features{step}").requires_grad_(), g[f"labels{step}"]
        hard, mean = memory.cross_entropies(x, labels)
        same_loss(hard, g[f"cross_entropy_hard{step}"])
        same_loss(mean, g[f"cross_entropy_mean{step}"])
        loss = memory.loss(x, labels)
        loss.backward()
        memory.update(x, labels)
        same_loss(loss, g[f"loss{step}"])
        close(x.grad, g[f"gradient{step}"], 1e-4)
        close(both(memory), g[f"memory_after{step}"], 2e-5)
    assert float(mean.detach()) < memory.margin        # so that the last batch shows the margin


def test_rpnr_hybrid(golden_methods):
    g = golden_methods.load("rpnr_hybrid")
    hybrid = hybrid_means(rows(g, "centroids_rgb"), rows(g, "centroids_ir"), g["i2r"], g["labels_ir"])
    close(hybrid, g["hybrid"], 2e-5)
    close(both(MeanHardMemory(hybrid, 0.05, 0.1, 0.2, 0.5)), g["memory"], 2e-5)


@pytest.mark.parametrize("case, tolerance", [("released", 1e-4), ("normalised", 5e-3), ("small", 1e-4)])
def test_rpnr_relation(golden_methods, case, tolerance):
    g = golden_methods.load("rpnr_rc")
    x = rows(g, f"{case}_features").requires_grad_()
    found = relation_loss(x, float(g["sigma"]), float(g["delta"]))
    found.backward()
    same_loss(found, g[f"{case}_loss"])
    close(x.grad, g[f"{case}_gradient"], tolerance)


@pytest.fixture
def released_numbers(golden_methods, monkeypatch):
    """The numbers of a step's file in place of the method's own, which are equal to them today."""
    g = golden_methods.load("rpnr_step")
    for name, key in {"MARGIN": "relu_margin", "SHARE": "half", "SIGMA": "sigma", "DELTA": "delta"}.items():
        monkeypatch.setattr(rpnr, name, float(g[key]))
    return g


@pytest.mark.parametrize("gradients", ["released", "exact"])
@pytest.mark.parametrize("kind", ["odd", "even"])
def test_rpnr_step(released_numbers, kind, gradients):
    g = released_numbers
    s = settings(g, method="rpnr", gradients=gradients, cross_weight=float(g["cross_weight"]),
                 hybrid_weight=float(g["hybrid_weight"]), relation="released", relation_weight=float(g["rc_weight"]))
    start = {m: rows(g, f"memory_{m.value}").chunk(2)[0] for m in Modality}
    memory = method_class("rpnr")(start, int(g[f"{kind}_epoch"]) + 1, s, Links(g["r2i"], g["i2r"]),
                             {m: np.arange(len(start[m])) for m in Modality})
    memory.load_state_dict({name: dict(zip(("prototypes", "hard"), rows(g, f"memory_{name}").chunk(2)))
                            for name in ("rgb", "ir", "hybrid")})
    losses, found, order = step_of(memory, g)
    same_loss(sum(losses.values()), g[f"{kind}_loss"])
    for name, weight in (("ir", 1), ("rgb", 1), ("cross", s.cross_weight), ("hybrid", s.hybrid_weight)):
        same_loss(losses[f"loss_{name}"] / weight, g[f"{kind}_loss_{name}"])
    same_loss(losses["loss_relation"] / s.relation_weight, g[f"{kind}_loss_rc_rgb"] + g[f"{kind}_loss_rc_ir"])
    for m in Modality:
        name = {"released": "gradient", "exact": "exact_gradient"}[gradients]
        close(found[m], g[f"{kind}_{name}_{m.value}"], 1e-4)
    for name, rows_after in memory.named.items():
        close(both(rows_after), g[f"{kind}_memory_{name}_after"], 2e-5)
    assert order == g[f"{kind}_backward_order"].tolist()


def test_the_methods_own_numbers_are_the_released_ones(golden_methods):
    g, transport = golden_methods.load("rpnr_step"), golden_methods.load("rpnr_ot")
    assert (rpnr.MARGIN, rpnr.SHARE, rpnr.SIGMA, rpnr.DELTA) == tuple(
        float(g[key]) for key in ("relu_margin", "half", "sigma", "delta"))
    assert loss.association.SINKHORN == tuple(float(transport[k]) for k in ("reg", "max_iterations", "stop_threshold"))
    assert loss.calibration.SIMILAR == float(golden_methods.load("rpnr_calibration")["threshold"])
