"""Sampler, prompt batches and augmentation."""
import numpy as np
import pytest
import torch

from data.augment import Augmentation, apply, draw, normalise
from data.sampler import cluster_batches, iterations_per_epoch
from processor.prompt import PromptBatches
from processor.train import Batches
from tests.tiny import EACH, PEOPLE, one_of, tiny_banks, tiny_prompt_settings, tiny_settings
from utils.modality import Modality
from utils.seeding import numpy_rng


def test_iterations_per_epoch():
    assert iterations_per_epoch(640, 100, 64) == 11
    assert iterations_per_epoch(100, 639, 64) == 10
    assert iterations_per_epoch(3, 5, 64) == 1


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


@pytest.mark.parametrize("clusters", [1, 2, 3])
def test_fewer_clusters_than_wanted(clusters):
    labels = np.arange(12) % clusters
    batches = cluster_batches(labels, clusters=4, instances=2, iterations=3, rng=numpy_rng(0))
    assert batches.shape == (3, 8)


def test_fewer_clusters_than_wanted_are_drawn_alike():
    labels = np.arange(30) % 3
    drawn = labels[cluster_batches(labels, clusters=4, instances=1, iterations=3000, rng=numpy_rng(0))]
    assert np.abs(np.bincount(drawn.ravel()) / drawn.size - 1 / 3).max() < 0.02


def test_only_outliers():
    with pytest.raises(ValueError, match="outliers"):
        cluster_batches(np.full(5, -1), 4, 2, 1, numpy_rng(0))


@pytest.mark.parametrize("n_rgb, n_ir, size", [(10, 7, 4), (8, 8, 4), (3, 9, 3), (2, 2, 100), (1, 5, 1)])
def test_prompt_batches_cover_everything_and_are_never_empty(n_rgb, n_ir, size):
    """Every labelled image of the larger modality once, all of the other, no outlier."""
    labels = {m: np.r_[-1, np.zeros(n), -1].astype(int) for m, n in zip(Modality, (n_rgb, n_ir))}
    batches = PromptBatches(None, labels, tiny_prompt_settings(PROMPT__BATCH_SIZE=size), 1)
    assert len(batches) == -(-max(n_rgb, n_ir) // size)
    for m, n in zip(Modality, (n_rgb, n_ir)):
        seen = np.concatenate([batches[step][m] for step in range(len(batches))])
        assert set(seen.tolist()) == set(range(1, n + 1)) and len(seen) == max(n_rgb, n_ir)
        assert all(0 < len(batches[step][m]) <= size for step in range(len(batches)))


def images(batch=400, height=32, width=16):
    return torch.randint(1, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(0),
                         dtype=torch.uint8)


def augment(x, policy, rng):
    return apply(x, draw(policy, len(x), x.shape[2:], rng))


def test_no_augmentation_is_normalisation_alone():
    x = images(4)
    torch.testing.assert_close(augment(x, Augmentation(), numpy_rng(0)), normalise(x))
    expected = (x[0, 1, 3, 5] / 255 - 0.456) / 0.224
    assert float(normalise(x)[0, 1, 3, 5]) == pytest.approx(float(expected), abs=1e-6)


def test_flip_and_grey_at_probability_one():
    x = images(4)
    torch.testing.assert_close(augment(x, Augmentation(flip=1.0), numpy_rng(0)), normalise(x.flip(3)))
    luma = 0.299 * x[:, 0].float() + 0.587 * x[:, 1].float() + 0.114 * x[:, 2].float()
    torch.testing.assert_close(augment(x, Augmentation(grey=1.0), numpy_rng(0)),
                               normalise(luma[:, None].expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_probabilities_hold_on_average():
    x = images()
    plain = normalise(x)
    for policy in (Augmentation(flip=0.5), Augmentation(grey=0.5), Augmentation(erase=0.5)):
        changed = (augment(x, policy, numpy_rng(2)) != plain).flatten(1).any(1).float().mean()
        assert 0.4 < float(changed) < 0.6, policy


def test_crop_shifts_into_black():
    x = images()
    black = normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    out = augment(x, Augmentation(pad=3), numpy_rng(3))
    top = (out == black).all(1).all(2).int().cumprod(1).sum(1)       # black rows above each image
    assert set(top.tolist()) == {0, 1, 2, 3}
    assert 0.45 < float((top == 0).float().mean()) < 0.7             # 4 of 7 offsets


def test_same_seed_same_images():
    policy = Augmentation(grey=0.5, flip=0.5, pad=3, erase=0.5)
    x = images(16)
    torch.testing.assert_close(augment(x, policy, numpy_rng(5)), augment(x, policy, numpy_rng(5)), rtol=0, atol=0)
    assert (augment(x, policy, numpy_rng(5)) != augment(x, policy, numpy_rng(6))).any()


def test_batches_of_an_epoch_count_labelled_images_alone():
    labels = {Modality.RGB: np.repeat([-1, 0, 1], [18, 6, 6]), Modality.IR: np.repeat([-1, 0, 1], [24, 3, 3])}
    batches = Batches(tiny_banks(), labels, tiny_settings(), 1)         # P x K = 2 x 2
    assert len(batches) == 12 // 4 + 1 and batches.size == 8
    assert all(len(batches[0].images[m]) == len(batches[0].labels[m]) == 4 for m in Modality)
    assert set(batches.names(0)) == {f"number {i}" for m in Modality for i in batches.positions[m][0]}


LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}


def batches_of(method, channel=0.0):
    settings = tiny_settings(METHOD__NAME=method, INPUT__CHANNEL=channel, INPUT__PAD=2, INPUT__GREY=0.5)
    return Batches(tiny_banks(), LABELS, settings, 1)


@pytest.mark.parametrize("method", ["pgm", "rpnr"])
def test_a_batch_holds_two_views_of_visible_images(method):
    plain, batches = batches_of("cclnet"), batches_of(method, channel=1.0)
    for step in (0, len(batches) - 1):
        one, two = plain[step], batches[step]
        for m, views in ((Modality.RGB, 2), (Modality.IR, 1)):
            np.testing.assert_array_equal(two.labels[m], np.tile(one.labels[m], views))
            np.testing.assert_array_equal(two.positions[m], np.tile(one.positions[m], views))
        assert torch.equal(two.images[Modality.IR], one.images[Modality.IR])
        first, second = two.images[Modality.RGB].chunk(2)
        assert torch.equal(first, one.images[Modality.RGB])
        assert all(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) for image in second)
    assert batches.size == 3 * plain.size // 2
    second = batches_of(method)[0].images[Modality.RGB].chunk(2)[1]
    assert not torch.equal(second, plain[0].images[Modality.RGB])       # drawn by a stream of its own
    assert not all(torch.equal(image[0], image[1]) for image in second)


def test_images_are_drawn_by_modality_epoch_and_step_and_labels_are_theirs():
    labels = {m: np.random.default_rng(number).permutation(LABELS[m]) for number, m in enumerate(Modality)}
    batches = Batches(tiny_banks(), labels, batches_of("cclnet").settings, 1)
    for m, step in ((Modality.RGB, 0), (Modality.IR, 2)):
        np.testing.assert_array_equal(batches[step].labels[m], labels[m][batches[step].positions[m]])
        assert len(set(batches[step].labels[m])) > 1
        rows = batches.images[m].batch(batches.positions[m][step])
        plan = draw(batches.settings.augmentation[m], 4, rows.shape[2:], numpy_rng(1, "augment", m.value, 1, step))
        assert torch.equal(batches[step].images[m], apply(rows, plan))


@pytest.mark.parametrize("method", ["cclnet", "pgm"])
def test_each_process_has_its_share_of_a_batch(method):
    """Of the images, in order; labels and positions are those of the whole batch."""
    whole = batches_of(method, channel=0.5)[1]
    shares = []
    for rank in range(2):
        batches = batches_of(method, channel=0.5)
        batches.processes = one_of(2, rank)
        shares.append(batches[1])
    for m in Modality:
        assert torch.equal(torch.cat([share.images[m] for share in shares]), whole.images[m])
        assert all(np.array_equal(share.labels[m], whole.labels[m]) for share in shares)
