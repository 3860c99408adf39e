"""PGM and RPNR: equal to the numbers of their released code, through the classes and functions that training uses."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss.cluster_memory import MEMORIES, cluster_means
from loss.links import Links, link_cost, link_rows, optimal_transport, progressive, sinkhorn
from loss.pgm import PGM
from loss.rpnr import RPNR, MeanHardMemory, calibrate, dense_means, density, hybrid_means, relation_loss
from tests.tiny import epoch_of, linked_by
from utils.modality import Modality

KINDS = [f"{parity}{plain}" for parity in ("odd", "even", "unmatched") for plain in ("", "_plain")]


def close(found, expected, share):
    """Compare arrays up to a share of the largest entry."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(torch.as_tensor(found).detach(), expected, rtol=0,
                               atol=share * float(np.abs(expected).max()))


def same_loss(found, expected):
    assert float(torch.as_tensor(found).detach()) == pytest.approx(float(expected), rel=1e-5, abs=5e-6)


def rows(g, name):
    return torch.from_numpy(g[name])


def begun(g, method, kind, links, **settings):
    """A method at the start of an epoch of a file; the modalities meet from epoch 1 on, which is epoch 0 there."""
    found = linked_by(method, links, temperature=float(g["temp"]), momentum=float(g["momentum"]), cross_epoch=1,
                      cross_weight=float(g["cross_weight"]), **settings)
    start = {m: rows(g, f"memory_{m.value}") for m in Modality}
    if method is RPNR:          # two prototypes of each cluster; `refill` sets both
        start = {m: both.chunk(2)[0] for m, both in start.items()}
    found.start(epoch_of(start), int(g[f"{kind}_epoch"]) + 1)
    return found


def steps_of(memory, g, kind=""):
    """Take the steps of a file with a memory, and compare losses and gradients; yield the number of each step."""
    for step in range(int(g["steps"])):
        x, labels = rows(g, f"features{step}").requires_grad_(), g[f"labels{step}"]
        loss = memory.loss(x, labels)
        loss.backward()
        memory.update(x, labels)
        same_loss(loss, g[f"{kind}loss{step}"])
        close(x.grad, g[f"{kind}gradient{step}"], 1e-4)
        yield step


@pytest.mark.parametrize("kind", MEMORIES)
def test_pgm_memory(golden_methods, kind):
    g = golden_methods.load("pgm_memory")
    memory = MEMORIES[kind](rows(g, "memory"), float(g["temp"]), float(g["momentum"]))
    for step in steps_of(memory, g, f"{kind}_"):
        close(memory.prototypes, g[f"{kind}_memory_after{step}"], 2e-5)


def step_of(method, g, kind, gradients):
    """Take a step: its losses by name; gradients of both batches and the order of the visits are compared here."""
    x = {m: rows(g, f"features_{m.value}").requires_grad_() for m in Modality}
    batch = SimpleNamespace(labels={m: g[f"labels_{m.value}"] for m in Modality})
    losses = method.losses(x, batch)
    sum(losses.values()).backward()
    name = {"released": "gradient", "exact": "exact_gradient"}[gradients]
    for m in Modality:
        close(x[m].grad, g[f"{kind}_{name}_{m.value}"], 1e-4)
    assert [f"{visit.memory} memory, {visit.batch.value} batch" for visit in method.visits] == g[
        f"{kind}_backward_order"].tolist()
    method.update(x, batch)
    same_loss(sum(losses.values()), g[f"{kind}_loss"])
    return losses


@pytest.mark.parametrize("gradients", ["released", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_pgm_step(golden_methods, kind, gradients):
    g = golden_methods.load("pgm_step")
    links = Links(g["r2i"], g["i2r"])
    if kind.startswith("unmatched"):
        links = Links(*(np.full_like(side, -1) for side in links))
    renewal = "plain" if kind.endswith("_plain") else PGM().settings.renewal
    method = begun(g, PGM, kind, links, renewal=renewal, gradients=gradients)
    losses = step_of(method, g, kind, gradients)
    for m in Modality:
        same_loss(losses[m.value], g[f"{kind}_loss_{m.value}"])
        close(method.prototypes()[m.value], g[f"{kind}_memory_{m.value}_after"], 2e-5)
    same_loss(losses.get("cross", 0) / method.settings.cross_weight, g[f"{kind}_loss_cross"])
    assert ("cross" in losses) != kind.startswith("unmatched")


def test_pgm_matching(golden_methods):
    """Where the SYSU-MM01 script gives up (fewer visible clusters), our rule is the RegDB script's."""
    g = golden_methods.load("pgm_matching")
    for case in g["cases"]:
        means = [rows(g, f"centroids_{m.value}_{case}") for m in Modality]
        links = link_rows(progressive, *means)
        script = "sysu" if len(means[0]) >= len(means[1]) else "regdb"
        np.testing.assert_array_equal(links.ir_to_rgb, g[f"{script}_i2r_{case}"])
        np.testing.assert_array_equal(links.rgb_to_ir, g[f"{script}_r2i_{case}"])


def test_rpnr_calibration(golden_methods):
    g = golden_methods.load("rpnr_calibration")
    features, labels = rows(g, "features"), g["labels"]
    close(cluster_means(features, labels), g["centroids"], 2e-5)
    found = density(F.normalize(features, dim=1), labels)
    np.testing.assert_array_equal(found.astype(np.float32), g["density"])
    for script in ("sysu", "regdb"):
        top = int(g[f"{script}_top_k"])
        close(dense_means(features, labels, found, top), g[f"{script}_prototypes"], 2e-5)
        np.testing.assert_array_equal(calibrate(features, labels, top), g[f"{script}_corrected_labels"])


def test_rpnr_optimal_transport(golden_methods):
    g = golden_methods.load("rpnr_ot")
    for case in g["cases"]:
        means = [rows(g, f"centroids_{m.value}_{case}") for m in Modality]
        unit = [F.normalize(x, dim=1) for x in means]
        plan, iterations = sinkhorn(link_cost((unit[0] @ unit[1].T).numpy()))
        assert iterations == int(g[f"iterations_{case}"])
        close(plan, g[f"plan_{case}"], 2e-5)
        links = link_rows(optimal_transport, *means)
        np.testing.assert_array_equal(links.ir_to_rgb, g[f"i2r_{case}"])
        np.testing.assert_array_equal(links.rgb_to_ir, g[f"r2i_{case}"])


def refill(memory, g, name):
    """Give a memory the 2 K rows of a file."""
    memory.prototypes, memory.hard = (half.clone() for half in rows(g, name).chunk(2))
    return memory


def both(memory):
    return torch.cat([memory.prototypes, memory.hard])


def test_rpnr_memory(golden_methods):
    g = golden_methods.load("rpnr_memory")
    memory = refill(MeanHardMemory(rows(g, "memory").chunk(2)[0], float(g["temp"]), float(g["momentum"])), g, "memory")
    for step in steps_of(memory, g):
        close(both(memory), g[f"memory_after{step}"], 2e-5)


def test_rpnr_hybrid(golden_methods):
    g = golden_methods.load("rpnr_hybrid")
    hybrid = hybrid_means(rows(g, "centroids_rgb"), rows(g, "centroids_ir"), g["i2r"], g["labels_ir"])
    close(hybrid, g["hybrid"], 2e-5)
    close(both(MeanHardMemory(hybrid, 0.05, 0.1)), g["memory"], 2e-5)


@pytest.mark.parametrize("case, tolerance", [("released", 1e-4), ("normalised", 5e-3), ("small", 1e-4)])
def test_rpnr_relation(golden_methods, case, tolerance):
    g = golden_methods.load("rpnr_rc")
    x = rows(g, f"{case}_features").requires_grad_()
    found = relation_loss(x)
    found.backward()
    same_loss(found, g[f"{case}_loss"])
    close(x.grad, g[f"{case}_gradient"], tolerance)


@pytest.mark.parametrize("gradients", ["released", "exact"])
@pytest.mark.parametrize("kind", ["odd", "even"])
def test_rpnr_step(golden_methods, kind, gradients):
    g = golden_methods.load("rpnr_step")
    method = begun(g, RPNR, kind, Links(g["r2i"], g["i2r"]), gradients=gradients, relation="released",
                   hybrid_weight=float(g["hybrid_weight"]), relation_weight=float(g["rc_weight"]))
    for name, memory in method.memories.items():
        refill(memory, g, f"memory_{name}")
    losses, s = step_of(method, g, kind, gradients), method.settings
    for name, weight in (("ir", 1), ("rgb", 1), ("cross", s.cross_weight), ("hybrid", s.hybrid_weight)):
        same_loss(losses[name] / weight, g[f"{kind}_loss_{name}"])
    same_loss(losses["relation"] / s.relation_weight, g[f"{kind}_loss_rc_rgb"] + g[f"{kind}_loss_rc_ir"])
    assert set(method.memories) == {"rgb", "ir", "hybrid"}
    for name, memory in method.memories.items():
        close(both(memory), g[f"{kind}_memory_{name}_after"], 2e-5)
