"""What is done with links: rules of the associations, the methods' steps, matching spaces."""
import dataclasses
import itertools
from types import SimpleNamespace

import loss.linking
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss.association import Links, hungarian, link, no_links, progressive, sinkhorn
from loss.linking import start_memory

import loss.calibration
import loss.rpnr
import processor.train
from clustering.quality import cluster_quality, link_numbers, with_images
from configs.defaults import choices, load_config
from data.pseudo_labels import cluster_means
from loss.calibration import calibrate
from loss.cluster_memory import HardMemory
from loss.methods import METHODS, method_class
from loss.rpnr import MeanHardMemory, hybrid_means, relation_loss
from processor.guidance import TextGuidance
from processor.run.epoch import epoch_lines, epoch_numbers
from processor.setup import train_settings
from tests.tiny import (
    EACH,
    IMAGES,
    PEOPLE,
    memory_settings,
    tiny_settings,
)
from utils.distributed import ALONE
from utils.errors import UserError
from utils.modality import Modality

SPACES = ("prototype", "centroid", "projection", "text")
LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}


def unit(rows, dim=16, seed=0):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


# ---- Associations

@pytest.mark.parametrize("sizes", [(9, 4), (4, 9), (13, 4), (5, 5), (1, 3), (3, 1)])
def test_progressive_links_every_cluster_however_many_there_are(sizes):
    """Our rule: as many rounds as it takes, each the cheapest assignment of those that are left."""
    rgb, ir = unit(sizes[0]), unit(sizes[1], seed=1)
    links = progressive(rgb, ir)
    assert all((side >= 0).all() for side in links)
    many, few, cost = links.rgb_to_ir, links.ir_to_rgb, torch.exp(-rgb @ ir.T).numpy()
    if sizes[0] < sizes[1]:
        many, few, cost = few, many, cost.T
    assert (many[few] == np.arange(len(few))).all()         # the first round links both ways
    counts = np.bincount(many, minlength=len(few))
    assert counts.max() - counts.min() <= 1                 # each takes one in a round
    best = min(sum(cost[p, np.arange(len(few))]) for p in map(list, itertools.permutations(range(len(cost)), len(few)))
               ) if len(few) <= 4 else None
    if best is not None:
        assert cost[few, np.arange(len(few))].sum() == pytest.approx(best, rel=1e-5)


def test_sinkhorn_has_its_marginals_and_the_least_cost_where_it_is_hardly_regularised():
    cost = np.random.default_rng(0).random((4, 4))
    plan, iterations = sinkhorn(cost, 0.05, 5000, 1e-9)
    np.testing.assert_allclose(plan.sum(0), 0.25, atol=1e-8)
    np.testing.assert_allclose(plan.sum(1), 0.25, atol=1e-8)
    assert 1 < iterations < 5000 and sinkhorn(cost, 0.05, 3, 0.0)[1] == 3
    assert sinkhorn(np.ones((3, 4)), 0.05, 5000, 1e-9)[1] == 1      # looked at in the first iteration too
    best = min(cost[range(4), p].sum() for p in itertools.permutations(range(4)))
    assert 4 * (plan * cost).sum() == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize("associate", [hungarian, progressive])
def test_clusters_without_a_row_stay_without_a_link(associate):
    rgb, ir = unit(4), unit(3, seed=1)
    expected = associate(rgb[[0, 2, 3]], ir[[0, 1]])
    rgb[1], ir[2] = 0, 0
    links = link(associate, 5 * rgb, 3 * ir)
    names = np.array([0, 2, 3])
    assert links.rgb_to_ir[1] == links.ir_to_rgb[2] == -1
    np.testing.assert_array_equal(links.rgb_to_ir[names], expected.rgb_to_ir)
    np.testing.assert_array_equal(links.ir_to_rgb[:2],
                                  np.where(expected.ir_to_rgb >= 0, names[expected.ir_to_rgb], -1))
    assert all((side == -1).all() for side in link(associate, 0 * rgb, ir))


def test_each_link_is_listed_once_from_whichever_side_it_is():
    rgb, ir = Links(np.array([1, 1, 0, -1]), np.array([-1, 0, 0])).pairs()
    assert list(zip(rgb.tolist(), ir.tolist())) == [(0, 1), (0, 2), (1, 1), (2, 0)]
    assert [len(side) for side in no_links(unit(2), unit(3)).pairs()] == [0, 0]


# ---- Steps

def batch(clusters=(4, 3), size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ({m: 3 * torch.randn(size, 16, generator=generator) for m in Modality},
            {m: torch.randint(0, k, (size,), generator=generator).numpy() for m, k in zip(Modality, clusters)})


def memory(method, epoch, links=None, **changes):
    """A memory of 4 visible and 3 infrared clusters, whose modalities meet from epoch 3 on."""
    start = {Modality.RGB: 2 * unit(4), Modality.IR: 2 * unit(3, seed=1)}
    settings = memory_settings(**{"method": method, "swap_epoch": 3, "temperature": 0.5, **changes})
    return method_class(method)(start, epoch, settings, links, {m: np.arange(len(rows)) for m, rows in start.items()})


LINKS = Links(np.array([1, 0, 2, 2]), np.array([1, 0, 3]))


@pytest.mark.parametrize("method", METHODS)
def test_the_modalities_do_not_meet_before_the_swap_epoch(method):
    x, labels = batch()
    before = memory(method, 2, LINKS)
    assert set(before.losses(x, labels)) == {"loss_rgb", "loss_ir"}
    before.update(x, labels)
    alone = memory(method, 2, LINKS)
    for m in Modality:
        alone.memories[m].update(x[m], labels[m])
        assert torch.equal(before.memories[m].prototypes, alone.memories[m].prototypes)


@pytest.mark.parametrize("epoch, across", [(3, Modality.RGB), (4, Modality.IR), (5, Modality.RGB), (6, Modality.IR)])
def test_the_batch_that_crosses_alternates_from_the_swap_epoch_on(epoch, across):
    x, labels = batch()
    both = memory("pgm", epoch, LINKS, cross_weight=0.7)
    crossed = {Modality.RGB: LINKS.rgb_to_ir, Modality.IR: LINKS.ir_to_rgb}[across][labels[across]]
    expected = 0.7 * both.memories[across.other].loss(x[across], crossed)
    torch.testing.assert_close(both.losses(x, labels)["loss_cross"], expected)
    names = [(visit.memory, visit.batch) for visit in both.visits(labels)]
    assert names == [(across.other.value, across), ("rgb", Modality.RGB), ("ir", Modality.IR)]


@pytest.mark.parametrize("gradients", ["exact", "released"])
@pytest.mark.parametrize("method", ["pgm", "rpnr"])
def test_images_without_a_partner_do_not_cross(method, gradients):
    x, labels = batch()
    one_way = Links(np.array([-1, -1, -1, 0]), np.array([-1, 0, 3]))
    both = memory(method, 3, one_way, gradients=gradients)
    kept = labels[Modality.RGB] == 3
    expected = 0.25 * both.memories[Modality.IR].loss(x[Modality.RGB][kept],
                                                      one_way.rgb_to_ir[labels[Modality.RGB][kept]])
    torch.testing.assert_close(both.losses(x, labels)["loss_cross"], expected)
    labels[Modality.RGB][:] = 1             # nobody in this batch has one
    assert float(both.losses(x, labels)["loss_cross"]) == 0
    alone = memory(method, 2)
    both.update(x, labels)
    alone.update(x, labels)
    assert torch.equal(both.memories[Modality.IR].prototypes, alone.memories[Modality.IR].prototypes)


def test_the_hybrid_memory_counts_as_the_infrared_one_does():
    """Its visitors are those that cross: visible images as their partner, infrared ones as themselves."""
    _, labels = batch()
    for epoch, m, partner in ((3, Modality.RGB, np.array([-1, 2, 0, 1])), (4, Modality.IR, np.array([1, -1, 2]))):
        links = Links(*(partner if side is m else np.zeros(k, int) for side, k in zip(Modality, (4, 3))))
        hybrid, cross = memory("rpnr", epoch, links).visits(labels)[:2]
        assert (hybrid.memory, hybrid.batch, cross.batch) == ("hybrid", m, m)
        own = labels[m] if m is Modality.IR else partner[labels[m]]
        np.testing.assert_array_equal(hybrid.labels, np.where(partner[labels[m]] < 0, -1, own))
        np.testing.assert_array_equal(cross.labels, partner[labels[m]])


@pytest.mark.parametrize("method", ["pgm", "rpnr"])
def test_losses_leave_the_memories_alone_and_the_two_gradients_differ_where_a_memory_was_crossed(method):
    gradients = {}
    for kind in ("exact", "released"):
        x, labels = batch()
        x = {m: rows.requires_grad_() for m, rows in x.items()}
        both = memory(method, 4, LINKS, gradients=kind, renewal="plain" if method == "pgm" else "")
        before = {name: of.prototypes.clone() for name, of in both.named.items()}
        losses = both.losses(x, labels)
        sum(losses.values()).backward()
        assert all(torch.equal(of.prototypes, before[name]) for name, of in both.named.items())
        gradients[kind] = {**{m: rows.grad for m, rows in x.items()}, "loss": sum(losses.values()).detach()}
    torch.testing.assert_close(*(g["loss"] for g in gradients.values()))
    exact, released = (gradients[kind] for kind in ("exact", "released"))
    assert not torch.allclose(exact[Modality.RGB], released[Modality.RGB], rtol=1e-2)   # IR batch has moved RGB rows


def test_links_of_prototypes_change_within_an_epoch_and_others_do_not():
    for links in (None, LINKS):
        both = memory("pgm", 3, links)
        found = [both.links()]
        for step in range(8):
            both.update(*batch(seed=step))
            found.append(both.links())
        changed = any((a.rgb_to_ir != found[0].rgb_to_ir).any() for a in found)
        assert changed == (links is None)


def test_a_hard_prototype_follows_the_first_of_equally_hard_samples():
    start = torch.eye(3)[:2]
    hard = HardMemory(start, 0.05, 0.5)
    x = torch.tensor([[0.0, 3.0, 4.0], [4.0, 0.0, 3.0], [0.0, 4.0, 3.0], [0.0, 1.0, 0.0]])
    hard.update(x, np.array([0, 0, 0, 1]))          # samples 0 and 2 are orthogonal to prototype 0
    torch.testing.assert_close(hard.prototypes[0], F.normalize(torch.tensor([0.5, 0.3, 0.4]), dim=0))
    torch.testing.assert_close(hard.prototypes[1], start[1])


def test_features_that_are_no_numbers_pass_the_hard_memory():
    """The check of the losses names their images; an index out of range would not."""
    hard = HardMemory(torch.eye(3)[:2], 0.05, 0.5)
    hard.update(torch.full((2, 3), torch.nan), np.array([0, 1]))
    assert torch.isnan(hard.prototypes).all()


@pytest.mark.parametrize("length", [0.01, 1.0, 30.0])
def test_the_relation_loss_is_its_formula(length):
    x = (length * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))).double()
    d = np.linalg.norm(x.numpy()[:, None] - x.numpy(), axis=2)
    s, w = d / d.mean(axis=1, keepdims=True), np.exp(-d ** 2 / 2.0)
    terms = w * s ** 2 + (1 - w) * np.maximum(0.7 - s, 0) ** 2
    assert float(relation_loss(x, 2.0, 0.7)) == pytest.approx(terms[~np.eye(5, dtype=bool)].mean())
    assert float(relation_loss(torch.zeros(3, 4), 2.0, 0.7)) == 0
    assert float(relation_loss(x[:1], 2.0, 0.7)) == 0


@pytest.mark.parametrize("relation", ["released", "normalised"])
def test_the_relations_features_have_unit_length_if_normalised(relation):
    x, labels = batch()
    found = memory("rpnr", 3, LINKS, relation=relation, relation_weight=3.0).losses(x, labels)["loss_relation"]
    rows = [x[m] / x[m].norm(dim=1, keepdim=True) if relation == "normalised" else x[m] for m in Modality]
    assert float(found) == pytest.approx(3 * sum(float(relation_loss(r, 1.0, 1.0)) for r in rows), rel=1e-5)


def test_hybrid_means_of_clusters_without_images_or_partner_are_zero():
    rgb, ir = torch.tensor([[2.0], [4.0]]), torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    found = hybrid_means(rgb, ir, np.array([1, -1, 0, 0]), np.array([-1, 0, 1, 2, 2]))
    assert found[:, 0].tolist() == [7, 0, 16, 0]


def test_two_prototypes_are_restored_as_copies():
    memory = MeanHardMemory(torch.eye(3), 0.05, 0.2, 0.2, 0.5)
    state = {"prototypes": torch.eye(3).flip(0), "hard": torch.eye(3)}
    memory.load_state_dict(state)
    assert torch.equal(memory.prototypes, state["prototypes"]) and torch.equal(memory.hard, state["hard"])
    memory.update(torch.ones(2, 3), np.array([0, 1]))
    assert torch.equal(state["prototypes"], torch.eye(3).flip(0)) and torch.equal(state["hard"], torch.eye(3))


@pytest.mark.parametrize("rows", [4096, 7])
def test_calibration_goes_by_angles(rows, monkeypatch):
    """Features of any length, whose dimensions spread unequally; a cluster may be larger than a block of products."""
    monkeypatch.setattr(loss.calibration, "BLOCK_ROWS", rows)
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(60, 6)) + 1.5) * rng.uniform(0.2, 3, (60, 1)) * [1, 4, 1, 0.2, 2, 1]
    labels = rng.integers(-1, 4, 60)
    angle = features / np.linalg.norm(features, axis=1, keepdims=True)
    prototypes = []
    for cluster in range(4):
        members = np.flatnonzero(labels == cluster)
        near = np.sign(angle[members] @ angle[members].T - 0.5).sum(axis=1)
        mean = features[members[np.argsort(-near, kind="stable")[:5]]].mean(axis=0)
        prototypes.append(mean / np.linalg.norm(mean))
    nearest = (angle @ np.array(prototypes).T).argmax(axis=1)
    found = calibrate(torch.from_numpy(features), labels, 5)
    np.testing.assert_array_equal(found, np.where(labels < 0, -1, nearest))
    assert (found != labels).any()


def test_cclnet_with_links_of_the_epoch_swaps_those():
    x, labels = batch()
    both, plain = memory("cclnet", 3, LINKS), memory("cclnet", 2, LINKS)
    plain.update(x, labels)
    numbers = both.update(x, labels)
    assert numbers["matched"] == len(LINKS.pairs()[0])
    cluster = labels[Modality.RGB][0]
    own, other = (plain.memories[m].prototypes for m in Modality)
    torch.testing.assert_close(both.memories[Modality.RGB].prototypes[cluster],
                               F.normalize(0.1 * own[cluster] + 0.9 * other[LINKS.rgb_to_ir[cluster]], dim=0))


def test_whole_batches_are_asked_for_where_losses_are_no_means_over_images():
    needs = {(method, gradients): memory(method, 3, LINKS, gradients=gradients).needs_whole_batch
             for method in METHODS for gradients in ("exact", "released")}
    assert {key for key, needed in needs.items() if needed} == {("pgm", "released"), ("rpnr", "exact"),
                                                                ("rpnr", "released")}
    assert not memory("rpnr", 3, LINKS, relation_weight=0.0).needs_whole_batch
    assert memory("rpnr", 3, LINKS, relation_weight=0.5).needs_whole_batch
    one_way = Links(np.array([1, -1, 2, 2]), np.array([1, 0, 3]))       # RGB cluster 1 crosses in even epochs, from 0
    assert [memory("pgm", epoch, one_way).needs_whole_batch for epoch in (2, 3, 4)] == [False, True, False]
    for method in METHODS:      # losses of both halves of a batch have the mean of the whole
        both, (x, labels) = memory(method, 3, LINKS), batch()
        if not both.needs_whole_batch:
            halves = [both.losses({m: x[m][rows] for m in Modality}, {m: labels[m][rows] for m in Modality})
                      for rows in (slice(0, 6), slice(6, 12))]
            for name, whole in both.losses(x, labels).items():
                torch.testing.assert_close(sum(half[name] for half in halves) / 2, whole)


@pytest.mark.parametrize("method", ["pgm", "rpnr"])
def test_prototypes_are_linked_once_in_a_step(method, monkeypatch):
    """By the prototypes of the step, be they those after an update or those of a state that was loaded."""
    of, given = method_class(method), []
    monkeypatch.setattr(of, "associate", staticmethod(
        lambda *rows, real=of.associate: given.append(rows[0].clone()) or real(*rows)))
    both, other, (x, labels) = memory(method, 3), memory(method, 3), batch()
    prototypes = both.memories[Modality.RGB].prototypes
    for step in range(2):
        given.clear()
        start = prototypes.clone()
        both.losses(x, labels)
        both.update(x, labels)
        assert len(given) == (method == "pgm" or step == 1) and all(torch.equal(rows, start) for rows in given)
    other.links()
    other.load_state_dict(both.state_dict())
    given.clear()
    other.links()
    assert len(given) == 1 and torch.equal(given[0], prototypes) and not torch.equal(prototypes, start)


# ---- Settings

def test_settings_reach_the_methods(monkeypatch):
    """Each setting of the methods does what it says."""
    def made(method="rpnr", **changes):
        words = {"METHOD.NAME": method, "METHOD.CROSS_EPOCH": 1, **{f"MEMORY.{k}": v for k, v in changes.items()}}
        s = train_settings(load_config(None, [str(word) for pair in words.items() for word in pair]), 9)
        labels = {m: np.repeat(np.arange(k), 3) for m, k in zip(Modality, (4, 3))}
        embedded = {m: {"feature": unit(len(of), seed=5), "projection": unit(len(of), seed=6 + i)}
                    for i, (m, of) in enumerate(labels.items())}
        return start_memory(embedded, labels, 1, s)[1]

    def losses(**changes):
        return {name: float(value) for name, value in made(**changes).losses(*batch()).items()}

    assert {type(made(method)) for method in METHODS} == set(map(method_class, METHODS))
    base = losses()
    for key, name in (("CROSS", "loss_cross"), ("HYBRID", "loss_hybrid"), ("RELATION", "loss_relation")):
        assert losses(**{f"{key}_WEIGHT": 3.0})[name] == pytest.approx(
            base[name] * 3 / {"CROSS": 0.25, "HYBRID": 0.5, "RELATION": 10}[key])
    assert losses(RELATION="normalised")["loss_relation"] != pytest.approx(base["loss_relation"], rel=1e-3)
    assert made(GRADIENTS="released").needs_whole_batch and not made("pgm").needs_whole_batch
    assert isinstance(made("pgm").memories[Modality.IR], HardMemory)
    assert not isinstance(made("pgm", RENEWAL="plain").memories[Modality.IR], HardMemory)
    assert isinstance(made("cclnet", RENEWAL="hard").memories[Modality.IR], HardMemory)
    assert made("cclnet").fixed is None and made("pgm", MATCH_BY="prototype").fixed is None
    assert made("pgm").fixed is not None and made("cclnet", MATCH_BY="projection").fixed is not None
    tops = []
    monkeypatch.setattr(loss.rpnr, "calibrate", lambda features, labels, top: tops.append(top) or labels)
    made(TOP_IMAGES=7)
    assert tops == [7, 7]


@pytest.mark.parametrize("key, value", [("METHOD", "ours"), ("MATCH_BY", "faces"), ("RENEWAL", "soft"),
                                        ("GRADIENTS", "none"), ("RELATION", "both"), ("TOP_IMAGES", 0),
                                        ("CROSS_WEIGHT", -1), ("HYBRID_WEIGHT", -1), ("RELATION_WEIGHT", -1)])
def test_values_that_are_none_are_named(key, value):
    with pytest.raises(UserError, match=f"MEMORY.{key} is ") as error:
        load_config(None, [f"MEMORY.{key}", str(value)])
    assert "choose" in str(error.value) or "expected" in str(error.value)


def test_train_prepare_has_no_texts_to_match_by():
    config = load_config(None, ["METHOD.LINK_BY", "text"])
    with pytest.raises(UserError, match="train_prepare.py has no texts.*choose prototype, centroid or projection"):
        train_settings(config, 9, texts=False)
    assert train_settings(config, 9).memory.match_by == "text"
    linkless = load_config(None, ["METHOD.LINK_BY", "text", "METHOD.NAME", "none"])      # links nothing in any space
    assert loss.linking.matching_space(train_settings(linkless, 9, texts=False).memory) == "prototype"


@pytest.mark.parametrize("name", ["sysu", "regdb", "llcm"])
@pytest.mark.parametrize("method, momentum", [("pgm", 0.2), ("rpnr", 0.1)])
def test_configurations_of_the_methods(name, method, momentum):
    config = load_config(f"configs/{name}_{method}.yml")
    assert config.METHOD.NAME == method and config.METHOD.MOMENTUM == momentum and config.INPUT.CHANNEL == 1
    assert config.METHOD.CROSS_EPOCH == config.PREPARE.EPOCHS // 2 + 1 == config.FINETUNE.EPOCHS // 2 + 1
    assert config.METHOD.TOP_IMAGES == (5 if (name, method) == ("regdb", "rpnr") else 20)
    assert method in config.OUTPUT_DIR and config.DATASET.NAME == name


@pytest.mark.parametrize("name", ["sysu", "regdb", "llcm"])
@pytest.mark.parametrize("method", ["pgm", "rpnr"])
def test_learning_rates_of_the_methods_are_those_of_two_released_runs(name, method):
    """PyTorch's own StepLR, of 20 epochs in a run of 50 (PGM's train_regdb.py: 10 of 30), anew in each half."""
    epochs, step = (30, 10) if (name, method) == ("regdb", "pgm") else (50, 20)
    adam, run = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=3.5e-4), []
    released = torch.optim.lr_scheduler.StepLR(adam, step_size=step, gamma=0.1)
    for _ in range(epochs):
        run += released.get_last_lr()
        adam.step()
        released.step()
    config = load_config(f"configs/{name}_{method}.yml")
    for stage in (config.PREPARE, config.FINETUNE):
        s = train_settings(config, stage.EPOCHS, stage.RESTART_AT_CROSS)
        assert [s.lr * s.lr_factor(epoch) for epoch in range(1, s.epochs + 1)] == pytest.approx(2 * run)
        assert s.restart_epoch == epochs + 1 and s.bias_lr_factor == 1


# ---- Matching spaces

def embedded(seed=0):
    """Features of both modalities at random, projections of an identity alike: (30, ·) each."""
    people = unit(PEOPLE, 8, seed=9)
    found = {}
    for i, m in enumerate(Modality):
        noise = torch.randn(IMAGES, 8, generator=torch.Generator().manual_seed(seed + i))
        found[m] = {"feature": unit(IMAGES, 16, seed=seed + 10 + i),
                    "projection": torch.logspace(0, 1, IMAGES)[:, None] * (people.repeat_interleave(EACH, 0)
                                                                           + 0.05 * noise)}
    return found


def test_links_come_from_the_space_that_is_asked_for():
    order = np.random.default_rng(0).permutation(PEOPLE)
    labels = {Modality.RGB: LABELS[Modality.RGB], Modality.IR: order[LABELS[Modality.IR]]}
    texts = {m: 2 * unit(PEOPLE, 8, seed=20) for m in Modality}
    guidance = TextGuidance(texts, LABELS, 0.1)
    found, inputs = {}, embedded()
    for space in SPACES:
        s = tiny_settings(METHOD__LINK_BY=space)
        found[space] = start_memory(inputs, labels, 1, s, guidance)[1]
    assert found["prototype"].fixed is None
    means = [cluster_means(inputs[m]["feature"], labels[m]) for m in Modality]
    expected = hungarian(*(F.normalize(rows, dim=1) for rows in means))
    np.testing.assert_array_equal(found["centroid"].fixed.rgb_to_ir, expected.rgb_to_ir)
    for space in ("projection", "text"):        # both show the persons
        np.testing.assert_array_equal(found[space].fixed.rgb_to_ir, order)
    assert (found["centroid"].fixed.rgb_to_ir != order).any()


def test_projections_are_linked_by_means_of_unit_ones(monkeypatch):
    inputs, linked = embedded(), []
    monkeypatch.setattr(loss.linking, "link", lambda method, *rows: linked.extend(rows) or link(method, *rows))
    start_memory(inputs, LABELS, 1, tiny_settings(METHOD__LINK_BY="projection"))
    for m, rows in zip(Modality, linked, strict=True):
        unit_rows = inputs[m]["projection"] / inputs[m]["projection"].norm(dim=1, keepdim=True)
        torch.testing.assert_close(rows, unit_rows.reshape(PEOPLE, EACH, -1).mean(1))


def test_rpnr_calibrates_from_the_swap_epoch_on_and_averages_means_of_their_lengths():
    """Prototypes and hybrid memory start from the clusters before calibration; the hybrid's mean keeps lengths."""
    inputs = {m: {"feature": unit(IMAGES, 16, seed=10 + i) * torch.linspace(0.2, 2, IMAGES)[:, None]}
              for i, m in enumerate(Modality)}
    s = tiny_settings(METHOD__NAME="rpnr", METHOD__CROSS_EPOCH=2)
    before, _ = start_memory(inputs, LABELS, 1, s)
    labels, both = start_memory(inputs, LABELS, 2, s)
    means = {m: cluster_means(inputs[m]["feature"], LABELS[m]) for m in Modality}
    for m in Modality:
        np.testing.assert_array_equal(before[m], LABELS[m])
        np.testing.assert_array_equal(labels[m], calibrate(inputs[m]["feature"], LABELS[m], s.memory.top_images))
        assert (labels[m] != LABELS[m]).any()
        torch.testing.assert_close(both.memories[m].prototypes, F.normalize(means[m], dim=1))
    rows = hybrid_means(*means.values(), both.fixed.ir_to_rgb, labels[Modality.IR])
    torch.testing.assert_close(both.hybrid.prototypes, F.normalize(rows, dim=1))


@pytest.mark.parametrize("method, mirrored", [("cclnet", False), ("pgm", False), ("rpnr", True)])
def test_rpnrs_features_alone_are_of_both_mirror_images(clip, banks, monkeypatch, method, mirrored):
    calls = []
    monkeypatch.setattr(processor.train, "embed", lambda *a, mirrored, **k: calls.append((a[3], mirrored)))
    for space, heads in (("", ("feature",)), ("projection", ("feature", "projection"))):
        s = tiny_settings(METHOD__NAME=method, METHOD__LINK_BY=space)
        processor.train._features(None, banks[Modality.IR], Modality.IR, s, 1, ALONE)
        assert calls.pop() == (heads, mirrored)


def test_a_clusters_text_is_the_mean_text_of_its_images():
    texts = {m: torch.tensor([[2.0, 0.0], [0.0, 5.0]]) for m in Modality}
    labels = {m: np.array([0, 0, 1, -1, 1, -1]) for m in Modality}
    clusters = {m: np.array([0, 0, 0, 0, -1, 1]) for m in Modality}
    for found in TextGuidance(texts, labels, 0.1).cluster_texts(clusters).values():
        torch.testing.assert_close(F.normalize(found, dim=1), torch.tensor([[2 / 5 ** 0.5, 1 / 5 ** 0.5], [0.0, 0.0]]))


# ---- States

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("links", [None, LINKS])
def test_a_memory_made_again_is_the_same(method, links):
    kept = memory(method, 4, links)
    kept.update(*batch())
    labels = {m: np.arange(k) for m, k in zip(Modality, (4, 3))}
    again = type(kept).restored(kept.state_dict(), 4, kept.settings, labels, torch.device("cpu"))
    for step in (1, 2):
        for both in (kept, again):
            both.update(*batch(seed=step))
    losses = [both.losses(*batch(seed=3)) for both in (kept, again)]
    assert losses[0].keys() == losses[1].keys() and all(torch.equal(losses[0][k], losses[1][k]) for k in losses[0])


# ---- What is said about links

def test_links_are_counted():
    pairs = (np.array([0, 1, 1, 3]), np.array([2, 2, 0, 1]), np.ones(4))
    assert link_numbers(pairs) == {"links": 4, "links_per_cluster": pytest.approx(8 / 6), "links_per_cluster_max": 2}
    assert link_numbers((np.zeros(0, int),) * 3) == {"links": 0, "links_per_cluster": 0, "links_per_cluster_max": 0}


def test_links_of_clusters_without_images_are_left_out():
    labels = {Modality.RGB: np.array([0, 1, -1]), Modality.IR: np.array([2, 0])}
    kept = with_images((np.array([0, 1, 2]), np.array([2, 1, 0]), np.array([0.1, 0.2, 0.3])), labels)
    assert [values.tolist() for values in kept] == [[0], [2], [0.1]]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_clusters_without_images_are_not_counted(order):
    """Whichever of three clusters it is that calibration has emptied."""
    names = np.array(order)
    labels = {m: names[[0, 0, 1, 1, 1]] for m in Modality}
    under_way = SimpleNamespace(labels=labels, step=1, setup_seconds=0.0,
                                means=SimpleNamespace(means=lambda steps: {"loss_rgb": 1.0}))
    numbers = epoch_numbers(1, under_way, 1e-4, 5, 1.0)
    assert numbers["clusters_rgb"] == 2
    assert (numbers["cluster_size_rgb_median"], numbers["cluster_size_ir_max"]) == (2.5, 3)
    assert cluster_quality(labels[Modality.RGB], np.array([5, 5, 5, 6, 6]))["clusters_per_person"] == 1


def test_lines_of_many_losses_stay_within_the_page():
    losses = {f"loss_{name}": 1.23456 for name in ("hybrid", "cross", "rgb", "ir", "relation", "i2t_rgb", "i2t_ir")}
    numbers = {"epoch": 100, **losses, "clusters_rgb": 612, "clusters_ir": 587, "outliers_rgb": 4120,
               "outliers_ir": 2087, "matched": 0.0, "ari_rgb": 0.5, "ari_ir": 0.5, "matching_accuracy": 0.5,
               "lr": 3.5e-4, "seconds": 1234.5, "images_per_second": 123.4, "links": 700, "links_per_cluster": 1.2,
               "links_per_cluster_max": 4}
    lines = epoch_lines("finetune", numbers, 120)
    assert len(lines) == 4 and all(line.startswith("finetune 100/120 | ") and len(line) <= 140 for line in lines)
    for part in ("i2t_ir 1.2346", "123 images/s | 1234.5 s, 412 min left", "links 50 % right"):
        assert sum(part in line for line in lines) == 1


def test_the_line_says_pairs_where_links_are_one_to_one():
    numbers = {"epoch": 1, "loss_rgb": 1.0, "clusters_rgb": 2, "clusters_ir": 2, "outliers_rgb": 0, "outliers_ir": 0,
               "matched": 2.0, "ari_rgb": 1.0, "ari_ir": 1.0, "matching_accuracy": 0.5, "lr": 1e-4, "seconds": 1.0,
               "images_per_second": 9.0, "links": 2, "links_per_cluster": 1.0, "links_per_cluster_max": 1}
    line = epoch_lines("finetune", numbers, 2)[1]
    assert line.endswith(", 2 pairs | diagnosis (known ids): ARI 1.00 1.00, pairs 50 % right")
    numbers |= {"links": 5, "matched": 0.0}         # of pgm, which swaps nothing
    assert ", 5 pairs | diagnosis" in epoch_lines("finetune", numbers, 2)[1]
    numbers |= {"links": 3, "links_per_cluster": 1.5, "links_per_cluster_max": 2}
    lines = epoch_lines("finetune", numbers, 2)[-2:]
    assert lines[0].endswith(", 3 links, 1.5 per cluster") and lines[1].endswith(": ARI 1.00 1.00, links 50 % right")


def test_every_space_is_a_choice_and_every_setting_has_its_field():
    assert ["", *SPACES] == choices("METHOD.LINK_BY")
    assert {field.name for field in dataclasses.fields(memory_settings())} == {
        key.lower() for key in load_config().MEMORY}
    assert loss.linking.matching_space(memory_settings(method="rpnr")) == "centroid"
