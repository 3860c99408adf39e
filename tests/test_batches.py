"""Which images an epoch's batches hold, whose labels they carry, and how they are augmented."""
import numpy as np
import pytest
import torch

from data.augment import MEAN, STD, apply, draw, normalise
from data.batches import Batches, PromptBatches, across_cameras, cluster_batches
from data.images import ImageBank
from tests.tiny import EACH, IMAGES, PEOPLE, one_of, tiny_banks, tiny_prompt_settings, tiny_settings
from utils.modality import Modality
from utils.seeding import numpy_rng

RGB, IR = Modality
LABELS = {m: np.random.default_rng(number).permutation(np.repeat(np.arange(PEOPLE), EACH))
          for number, m in enumerate(Modality)}


def images():
    """Banks of the five people, whose cameras are numbered by position."""
    return {m: ImageBank(bank.images, cameras=np.arange(IMAGES) * (2 if m is IR else 3))
            for m, bank in tiny_banks().items()}


def batches_of(method="cclnet", processes=None, epoch=1, **changes):
    settings = tiny_settings(METHOD__NAME=method, **{"INPUT__PAD": 2, "INPUT__GREY": 0.5, **changes})
    more = () if processes is None else (processes,)
    return Batches(images(), LABELS, settings, epoch, settings.method.views, *more)


def test_batches_hold_p_clusters_of_k_images():
    labels = np.repeat([-1, 0, 1, 2, 3, 4, 5], [9, 1, 2, 3, 20, 4, 5])
    batches = cluster_batches(labels, clusters=4, instances=5, iterations=200, rng=numpy_rng(0))
    assert batches.shape == (200, 20) and batches.dtype == np.int64
    drawn = labels[batches].reshape(200, 4, 5)
    assert (drawn >= 0).all() and (drawn == drawn[:, :, :1]).all()
    assert all(len(set(row)) == 4 for row in drawn[:, :, 0].tolist())
    share = np.bincount(drawn[:, :, 0].ravel()) / 200          # each cluster is in 4 of 6 batches
    assert np.abs(share - 4 / 6).max() < 0.15
    assert set(batches.ravel()) == set(np.flatnonzero(labels >= 0))


@pytest.mark.parametrize("of, few", [([0, 0, 0, 1, 1, 2, 2], False), ([0, 0, 0, 0, 0, 1], True), ([3] * 5, False),
                                     ([3], True)], ids=["others", "few others", "one camera", "one image"])
def test_images_of_other_cameras(of, few):
    """Four images of a cluster: any one, three of other cameras; one of these twice only where there are few."""
    cameras, firsts = np.array([9, *of]), set()
    for seed in range(60):
        drawn = np.array(across_cameras(np.arange(1, len(cameras)), cameras, 4, numpy_rng(seed)))
        firsts.add(drawn[0])
        others = drawn[1:]
        if len(set(of)) > 1:
            assert (cameras[others] != cameras[drawn[0]]).all()
        elif len(of) > 1:
            assert drawn[0] not in others
        assert few or len(set(others)) == 3
    assert firsts == set(range(1, len(cameras)))


def test_batches_of_other_cameras_and_of_fewer_visible_clusters():
    """P visible clusters of their own, K images each, cameras of the images; as many batches as asked for."""
    changes = {"SAMPLER__CLUSTERS": 4, "SAMPLER__RGB_CLUSTERS": 2, "SAMPLER__INSTANCES": 3, "SAMPLER__ITERATIONS": 5}
    batches = batches_of("pgm", SAMPLER__CAMERAS="others", **changes)
    assert len(batches) == 5 and batches.size == 3 * (2 * 2 + 4)
    for batch in batches:
        for m, clusters in ((RGB, 2), (IR, 4)):
            labels, positions = (rows[m][:3 * clusters].reshape(-1, 3) for rows in (batch.labels, batch.positions))
            assert len(set(labels[:, 0])) == clusters and (labels == labels[:, :1]).all()
            assert all(len(set(row)) == 3 for row in positions)     # each image has a camera of its own here
            assert batch.images[m].shape[0] == len(batch.labels[m]) == 3 * clusters * (2 if m is RGB else 1)
    assert any(len(set(row)) < 3 for batch in batches_of("pgm", **changes) for row in batch.positions[IR].reshape(4, 3))


def test_fewer_clusters_than_wanted_are_drawn_alike():
    labels = np.arange(30) % 3
    batches = cluster_batches(labels, clusters=4, instances=2, iterations=3000, rng=numpy_rng(0))
    assert batches.shape == (3000, 8)
    assert np.abs(np.bincount(labels[batches].ravel()) / batches.size - 1 / 3).max() < 0.02


def test_batches_of_an_epoch_count_labelled_images_alone():
    labels = {RGB: np.repeat([-1, 0, 1], [18, 6, 6]), IR: np.repeat([-1, 0, 1], [24, 3, 3])}
    batches = Batches(images(), labels, tiny_settings(), 1)         # P x K = 2 x 2
    assert len(batches) == 12 // 4 + 1 and batches.size == 8
    assert all((batch.labels[m] >= 0).all() and len(batch.images[m]) == 4 for batch in batches for m in Modality)
    assert set(batches.names(0)) == {f"number {i}" for m in Modality for i in batches.positions[m][0]}


def test_a_batch_is_of_its_images():
    """Labels and cameras are those of its positions; images are those too, augmented by a stream of the step."""
    batches = batches_of(SEED=5, epoch=3)
    for m, step in ((RGB, 0), (IR, 2)):
        batch, positions = batches[step], batches.positions[m][step]
        np.testing.assert_array_equal(batch.positions[m], positions)
        np.testing.assert_array_equal(batch.labels[m], LABELS[m][positions])
        np.testing.assert_array_equal(batch.cameras[m], positions * (2 if m is IR else 3))
        assert len(set(batch.labels[m])) > 1
        rows = batches.images[m].batch(positions)
        plan = draw(batches.settings.augmentation[m], 4, rows.shape[2:], numpy_rng(5, "augment", m.value, 3, step))
        assert torch.equal(batch.images[m], apply(rows, plan)) and not torch.equal(batch.images[m], normalise(rows))


def test_grey_is_for_visible_images_alone():
    """Grey images have three equal channels; infrared ones keep the colours that their files have."""
    batch = batches_of(INPUT__GREY=1.0, INPUT__FLIP=0.0, INPUT__PAD=0)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert float((batch.images[RGB] * std + mean).std(dim=1).max()) < 1e-5
    assert torch.equal(batch.images[IR], normalise(images()[IR].batch(batch.positions[IR])))


def test_a_batch_holds_two_views_of_visible_images():
    plain, batches = batches_of(), batches_of("pgm", INPUT__CHANNEL=1.0)
    for step in (0, len(batches) - 1):
        one, two = plain[step], batches[step]
        for m, views in ((RGB, 2), (IR, 1)):
            for part in ("labels", "positions", "cameras"):
                np.testing.assert_array_equal(getattr(two, part)[m], np.tile(getattr(one, part)[m], views))
        assert torch.equal(two.images[IR], one.images[IR])
        first, second = two.images[RGB].chunk(2)
        assert torch.equal(first, one.images[RGB])
        assert all(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) for image in second)
    assert batches.size == 3 * plain.size // 2
    second = batches_of("pgm")[0].images[RGB].chunk(2)[1]
    assert not torch.equal(second, plain[0].images[RGB])       # drawn by a stream of its own
    assert not all(torch.equal(image[0], image[1]) for image in second)


@pytest.mark.parametrize("method, of, changed", [
    ("cclnet", "visible", (True, False)), ("pgm", "visible", (False, True, False)), ("pgm", "all", (True, True, True))])
def test_colour_jitter(method, of, changed):
    """Of visible images, of their second views, or of all images; all else stays as it was."""
    plain, jittered = (batches_of(method, INPUT__JITTER=strength, INPUT__JITTER_OF=of)[0] for strength in (0, 0.5))
    views = [[*batch.images[RGB].split(4), batch.images[IR]] for batch in (plain, jittered)]
    assert tuple(not torch.equal(*pair) for pair in zip(*views)) == changed
    assert all(np.array_equal(plain.positions[m], jittered.positions[m]) for m in Modality)


def test_each_process_has_its_share_of_a_batch():
    """Of the images, in order; labels, positions and cameras are those of the whole batch."""
    whole = batches_of("pgm", INPUT__CHANNEL=0.5)[1]
    shares = [batches_of("pgm", one_of(2, rank), INPUT__CHANNEL=0.5)[1] for rank in range(2)]
    for m in Modality:
        assert torch.equal(torch.cat([share.images[m] for share in shares]), whole.images[m])
        assert all(np.array_equal(getattr(share, part)[m], getattr(whole, part)[m]) for share in shares
                   for part in ("labels", "positions", "cameras"))


@pytest.mark.parametrize("n_rgb, n_ir, size", [(10, 7, 4), (8, 8, 4), (3, 9, 3), (2, 2, 100)])
def test_prompt_batches_cover_everything_and_are_never_empty(n_rgb, n_ir, size):
    """Every labelled image of the larger modality once, all of the other, no outlier."""
    labels = {m: np.r_[-1, np.zeros(n), -1].astype(int) for m, n in zip(Modality, (n_rgb, n_ir))}
    batches = PromptBatches(None, labels, tiny_prompt_settings(PROMPT__BATCH_SIZE=size), 1)
    assert len(batches) == len(list(batches)) == -(-max(n_rgb, n_ir) // size)
    for m, n in zip(Modality, (n_rgb, n_ir)):
        seen = np.concatenate([batch[m] for batch in batches])
        assert set(seen.tolist()) == set(range(1, n + 1)) and len(seen) == max(n_rgb, n_ir)
        assert all(0 < len(batch[m]) <= size for batch in batches)


def test_repeats_of_the_smaller_modality_are_drawn_alike():
    labels = {RGB: np.zeros(6000, int), IR: np.array([0, -1, 0, 0])}
    counts = np.bincount(PromptBatches(None, labels, tiny_prompt_settings(), 1).order[IR])
    assert counts.sum() == 6000 and counts[1] == 0 and np.abs(counts[[0, 2, 3]] - 2000).max() < 150
