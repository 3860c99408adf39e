"""Methods: rules of links, steps across the modalities, spaces, settings, and what the loop promises a method."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import loss.rpnr
from configs.defaults import load_config
from data.pseudo_labels import load_pseudo_labels
from loss.cluster_memory import cluster_means
from loss.links import Links, hungarian, link_rows, optimal_transport, progressive
from loss.method import EpochStart, Method
from loss.methods import METHODS
from loss.rpnr import calibrate, hybrid_means, relation_loss
from processor.guidance import TextGuidance
from processor.optim import lr_factor
from processor.setup import train_settings
from processor.train import train, train_step
from tests.test_memory import draw, unit
from tests.tiny import EACH, IMAGES, LABELS, PEOPLE, TinyRun, epoch_of, linked_by, tiny_settings, tiny_tester
from utils.errors import UserError
from utils.modality import Modality
from utils.settings import Range, Setting


@pytest.mark.parametrize("sizes", [(9, 4), (4, 9), (13, 4), (5, 5), (1, 3)])
def test_progressive_links_every_cluster_however_many_there_are(sizes):
    """Our rule: as many rounds as it takes, in each of which a cluster of the smaller side takes one."""
    links = progressive((unit(sizes[0]) @ unit(sizes[1], 1).T).numpy())
    few, many = sorted((links.rgb_to_ir, links.ir_to_rgb), key=len)
    assert (few >= 0).all() and (many[few] == np.arange(len(few))).all()        # the first round links both ways
    assert np.ptp(np.bincount(many, minlength=len(few))) <= 1


@pytest.mark.parametrize("rule", [hungarian, progressive, optimal_transport])
def test_clusters_without_a_row_stay_without_a_link(rule):
    rgb, ir = unit(4), unit(3, 1)
    expected = rule((rgb[[0, 2, 3]] @ ir[[0, 1]].T).numpy())
    rgb[1], ir[2] = 0, 0
    links, names = link_rows(rule, 5 * rgb, 3 * ir), np.array([0, 2, 3])
    assert links.rgb_to_ir[1] == links.ir_to_rgb[2] == -1
    np.testing.assert_array_equal(links.rgb_to_ir[names], expected.rgb_to_ir)
    np.testing.assert_array_equal(links.ir_to_rgb[:2], np.where(expected.ir_to_rgb >= 0, names[expected.ir_to_rgb], -1))
    assert all((side == -1).all() for side in link_rows(rule, 0 * rgb, ir))


LINKS = Links(np.array([1, 0, 2, 2]), np.array([1, 0, 3]))


def begun(name, epoch, links=None, **settings):
    """A method at an epoch's start with 4 visible and 3 infrared clusters; its modalities meet from epoch 3 on."""
    settings = {"cross_epoch": 3, "temperature": 0.5, **settings}
    found = METHODS[name](**settings) if links is None else linked_by(METHODS[name], links, **settings)
    found.start(epoch_of({Modality.RGB: 2 * unit(4), Modality.IR: 2 * unit(3, 1)}), epoch)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_modalities_do_not_meet_before_the_cross_epoch(name):
    """Other links change nothing before it."""
    x, batch = draw()
    both = [begun(name, 2, links) for links in (LINKS, Links(np.array([2, 1, 0, 0]), np.array([3, 1, 0])))]
    losses = [method.losses(x, batch) for method in both]
    assert set(losses[0]) - {"near_rgb_rgb", "near_ir_ir"} == {"rgb", "ir"} and losses[0] == losses[1]
    for method in both:
        method.update(x, batch)
    assert all(map(torch.equal, *(method.prototypes().values() for method in both)))


@pytest.mark.parametrize("gradients", ["exact", "released"])
@pytest.mark.parametrize("epoch, across", [(3, Modality.RGB), (4, Modality.IR), (5, Modality.RGB)])
def test_the_batch_that_crosses_alternates_and_images_without_a_partner_stay_out(epoch, across, gradients):
    """Of the hybrid memory, whose clusters are the infrared ones, too: infrared images visit it as themselves."""
    x, batch = draw()
    links = Links(np.array([1, -1, 2, 2]), np.array([-1, 0, 3]))
    method = begun("rpnr", epoch, links, cross_weight=0.7, hybrid_weight=2.0, gradients=gradients)
    partner = {Modality.RGB: links.rgb_to_ir, Modality.IR: links.ir_to_rgb}[across][batch.labels[across]]
    kept, losses = partner >= 0, method.losses(x, batch)
    expected = 0.7 * method.memories[across.other.value].loss(x[across][kept], partner[kept])
    torch.testing.assert_close(losses["cross"], expected)
    hybrid = (batch.labels[across] if across is Modality.IR else partner)[kept]
    torch.testing.assert_close(losses["hybrid"], 2 * method.memories["hybrid"].loss(x[across][kept], hybrid))
    other, alone = across.other.value, begun("rpnr", 2)
    batch.labels[across][:] = {Modality.RGB: 1, Modality.IR: 0}[across]         # nobody in this batch has a partner
    assert float(method.losses(x, batch)["cross"]) == 0
    alone.losses(x, batch)
    for each in (method, alone):
        each.update(x, batch)
    assert torch.equal(method.prototypes()[other], alone.prototypes()[other])


@pytest.mark.parametrize("name", ["cclnet", "pgm", "rpnr"])
def test_links_of_prototypes_change_within_an_epoch_and_others_do_not(name):
    for space in ("prototype", "centroid"):
        method, found = begun(name, 3, link_by=space), []
        for step in range(8):
            x, batch = draw(step)
            method.losses(x, batch)
            method.update(x, batch)
            found.append([partner.tolist() for partner in method.links()])
        assert any(links != found[0] for links in found) == (space == "prototype")


@pytest.mark.parametrize("relation", ["released", "normalised"])
def test_the_relations_features_have_unit_length_if_normalised(relation):
    x, batch = draw()
    found = begun("rpnr", 3, LINKS, relation=relation, relation_weight=3.0).losses(x, batch)["relation"]
    rows = [x[m] / x[m].norm(dim=1, keepdim=True) if relation == "normalised" else x[m] for m in Modality]
    assert float(found) == pytest.approx(3 * sum(float(relation_loss(r)) for r in rows), rel=1e-5)
    assert float(relation_loss(torch.zeros(3, 4))) == float(relation_loss(rows[0][:1])) == 0


@pytest.mark.parametrize("rows", [1024, 7])
def test_calibration_goes_by_angles(rows, monkeypatch):
    """Features of any length, whose dimensions spread unequally; a cluster may be larger than a block of products."""
    monkeypatch.setattr(loss.rpnr, "BLOCK_ROWS", rows)
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(60, 6)) + 1.5) * rng.uniform(0.2, 3, (60, 1)) * [1, 4, 1, 0.2, 2, 1]
    labels = rng.integers(-1, 4, 60)
    angle, prototypes = features / np.linalg.norm(features, axis=1, keepdims=True), []
    for members in (np.flatnonzero(labels == cluster) for cluster in range(4)):
        near = np.sign(angle[members] @ angle[members].T - 0.5).sum(axis=1)
        mean = features[members[np.argsort(-near, kind="stable")[:5]]].mean(axis=0)
        prototypes.append(mean / np.linalg.norm(mean))
    expected = np.where(labels < 0, -1, (angle @ np.array(prototypes).T).argmax(axis=1))
    np.testing.assert_array_equal(calibrate(torch.from_numpy(features), labels, 5), expected)
    assert (expected != labels).any()


def test_rpnr_calibrates_from_the_cross_epoch_on_and_averages_means_of_their_lengths():
    """Prototypes and hybrid memory start from the clusters before calibration; the hybrid's mean keeps lengths."""
    features = {m: unit(IMAGES, 10 + i) * torch.linspace(0.2, 2, IMAGES)[:, None] for i, m in enumerate(Modality)}
    start, method = EpochStart({"feature": features}, LABELS, None), METHODS["rpnr"](cross_epoch=2, top_images=4)
    assert method.start(start, 1) is LABELS
    labels = method.start(start, 2)
    means = {m: cluster_means(features[m], LABELS[m]) for m in Modality}
    for m in Modality:
        np.testing.assert_array_equal(labels[m], calibrate(features[m], LABELS[m], 4))
        assert (labels[m] != LABELS[m]).any()
        torch.testing.assert_close(method.prototypes()[m.value], F.normalize(means[m], dim=1))
    rows = hybrid_means(*means.values(), link_rows(optimal_transport, *means.values()).ir_to_rgb, labels[Modality.IR])
    torch.testing.assert_close(method.prototypes()["hybrid"], F.normalize(rows, dim=1))


def test_links_come_from_the_space_that_is_asked_for():
    """Projections and texts show the persons, but for one long projection of another in each; features are random."""
    order, people = np.random.default_rng(0).permutation(PEOPLE), unit(PEOPLE, 9, 8)
    labels = {Modality.RGB: LABELS[Modality.RGB], Modality.IR: order[LABELS[Modality.IR]]}
    shown = {m: people.repeat_interleave(EACH, 0) + 0.05 * unit(IMAGES, i, 8) for i, m in enumerate(Modality)}
    shown[Modality.RGB][::EACH] = 100 * people.roll(1, 0)       # outweighs the other five unless all have unit length
    features = {"feature": {m: unit(IMAGES, 10 + i) for i, m in enumerate(Modality)}, "projection": shown,
                "text": TextGuidance({m: 2 * unit(PEOPLE, 20, 8) for m in Modality}, LABELS, 0.1).image_texts()}
    found, means = {}, [cluster_means(features["feature"][m], labels[m]) for m in Modality]
    for space in ("centroid", "projection", "text"):
        method = METHODS["cclnet"](link_by=space)
        method.start(EpochStart({head: features[head] for head in method.needs}, labels, None), 1)
        found[space] = {r: i for r, i in enumerate(method.links().rgb_to_ir) if i >= 0}
    expected = link_rows(hungarian, *means).rgb_to_ir
    assert found["centroid"] == {r: i for r, i in enumerate(expected) if i >= 0} != dict(enumerate(order))
    assert found["projection"] == found["text"] == dict(enumerate(order))


def test_a_loss_with_the_name_of_a_text_loss_is_refused():
    batch = SimpleNamespace(images={m: torch.zeros(1) for m in Modality})
    both = SimpleNamespace(losses=lambda *_: {"i2t_rgb": torch.zeros(())})
    with pytest.raises(UserError, match="loss i2t_rgb has the name"):
        train_step(lambda *_: {"feature": None, "projection": None}, None, both, batch, both)


def test_guidance_reads_train_prepares_labels_and_ignores_those_without():
    guidance = TextGuidance({m: torch.eye(3) for m in Modality}, {m: np.array([2, -1, 0]) for m in Modality}, 0.0)
    rows = {m: torch.eye(3)[[2, 1]] * 50 for m in Modality}
    losses = guidance.losses(rows, SimpleNamespace(positions=dict(zip(Modality, np.array([[0, 1], [1, 1]])))))
    assert float(losses["i2t_rgb"]) == pytest.approx(0, abs=1e-6) and float(losses["i2t_ir"]) == 0
    wrong = guidance.losses(rows, SimpleNamespace(positions={m: np.array([2, 1]) for m in Modality}))
    assert float(wrong["i2t_rgb"]) == pytest.approx(50)     # the mean over labelled images


def test_the_text_of_an_image_has_unit_length_and_is_zero_without_a_label():
    texts = {m: torch.tensor([[3.0, 4.0], [0.0, 0.5]]) for m in Modality}
    labels = dict(zip(Modality, np.array([[0, -1, 1], [1, 0, 0]])))
    found = TextGuidance(texts, labels, 0.1).image_texts()
    torch.testing.assert_close(found[Modality.RGB], torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(found[Modality.IR], torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.6, 0.8]]))


# Two clusters of each modality, one of them shared; the first image of each is left out.
TWO = {m: np.where(np.arange(IMAGES) == 0, -1, np.where(np.arange(IMAGES) < size, own, 7))
       for m, size, own in zip(Modality, (12, 24), (3, 5))}


class Mine(Method):
    """Trains on TWO by losses of odd names."""

    SETTINGS = (Setting("PULL", 0.5, Range(0, 1), "weight of the length"),)

    def unifies(self, epoch):
        return True

    def start(self, start, epoch):
        Mine.seen = start
        return TWO

    def losses(self, features, batch):
        assert all((batch.labels[m] == TWO[m][rows]).all() and (rows > 0).all() for m, rows in batch.positions.items())
        assert all((batch.cameras[m] == rows % 4).all() for m, rows in batch.positions.items())
        return {"length of things": self.settings.pull * features[Modality.RGB].norm(dim=1).mean(),
                "two": 0 * features[Modality.IR].sum() + 2}

    def update(self, features, batch):
        return {"images": len(features[Modality.IR])}


def test_a_method_of_ones_own_in_the_loop(model, banks, tmp_path, monkeypatch):
    """With camera proxies beside it."""
    monkeypatch.setitem(METHODS, "mine", Mine)
    for bank in banks.values():
        monkeypatch.setattr(bank, "cameras", np.arange(IMAGES) % 4)
    run, settings = TinyRun(tmp_path), tiny_settings(1, METHOD__NAME="mine", METHOD__PULL=0.25,
                                                     METHOD__CAMERA_WEIGHT=0.5)
    train("prepare", model, banks, settings, run, tiny_tester(banks))
    start = Mine.seen
    for m in Modality:
        assert start.features["feature"][m].shape == (IMAGES, model.feature_dim)
        assert start.labels[m].shape == (IMAGES,) and start.labels[m].max() < IMAGES
        np.testing.assert_array_equal(start.cameras[m], np.arange(IMAGES) % 4)
    (row,) = run.rows("prepare")
    assert row["loss_two"] == 2 and row["loss_length of things"] > 0 and row["images"] == 4
    assert row["loss_camera_intra"] > 0 and row["loss_camera_inter"] > 0
    assert "links" not in row and row["clusters_rgb"] == row["clusters_ir"] == 2 and row["outliers_ir"] == 1
    saved, _ = load_pseudo_labels(run.labels_folder, dict.fromkeys(Modality, IMAGES), run.facts["manifest"])
    renumbered = {-1: -1, 3: 0, 5: 1, 7: 2}     # one mapping for both modalities
    assert all(saved[m].tolist() == [renumbered[label] for label in TWO[m]] for m in Modality)


def test_what_the_methods_ask_for_is_that_of_the_released_runs():
    """Views of a visible image, whether features at an epoch's start are means over mirror images, depths of them."""
    asked = {name: (method.views, method().mirrored, method.depths) for name, method in METHODS.items()}
    plain = (1, False, 1)
    assert asked == {"cclnet": plain, "none": plain, "unify": plain, "pgm": (2, False, 1), "rpnr": (2, True, 1),
                     "nulc": (2, True, 1), "sdcl": (2, True, 2)}
    assert METHODS["nulc"]().settings.neighbours == 30      # golden vectors have 10


@pytest.mark.parametrize("name, end, method, momentum", [*(
    (*place, *method) for place in (("sysu", ""), ("regdb", ""), ("llcm", ""), ("sysu", "_agw"), ("regdb", "_agw"))
    for method in (("pgm", 0.2), ("rpnr", 0.1))), ("sysu", "", "nulc", 0.2)])
def test_configurations_of_the_methods_are_those_of_two_released_runs(name, end, method, momentum):
    """PyTorch's own StepLR, of 20 epochs in a run of 50 (PGM's train_regdb.py: 10 of 30), anew in each half."""
    epochs, step = (30, 10) if (name, method) == ("regdb", "pgm") else (50, 20)
    adam, run = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=3.5e-4), []
    released = torch.optim.lr_scheduler.StepLR(adam, step_size=step, gamma=0.1)
    for _ in range(epochs):
        run += released.get_last_lr()
        adam.step()
        released.step()
    config = load_config(f"configs/{name}_{method}{end}.yml")
    assert (config.METHOD.NAME, config.METHOD.MOMENTUM, config.INPUT.CHANNEL) == (method, momentum, 1)
    assert method in config.OUTPUT_DIR and config.DATASET.NAME == name
    assert method != "rpnr" or config.METHOD.TOP_IMAGES == (5 if name == "regdb" else 20)
    for stage in ("prepare",) if end or method == "nulc" else ("prepare", "finetune"):
        s = train_settings(config, stage)
        assert [s.optim.lr * lr_factor(s, epoch) for epoch in range(1, s.epochs + 1)] == pytest.approx(2 * run)
        assert s.restart_epoch == s.of_method["cross_epoch"] == epochs + 1 and s.optim.bias_lr_factor == 1
