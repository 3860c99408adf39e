"""Embedding images: batch sizes, shares of processes, mirrored images, embeddings that are not finite."""
import numpy as np
import pytest
import torch

from data.augment import normalise
from model.cclnet import CCLNet
from processor.features import embed, embed_all
from tests.tiny import IMAGES, one_of, tiny_settings
from utils.finite import NonFinite
from utils.modality import Modality

RGB, IR = Modality


@pytest.fixture
def watched(monkeypatch):
    """What `CCLNet.encode` was given, and whether the model was in training mode."""
    calls = []

    def encode(self, images, *rest, real=CCLNet.encode):
        calls.append((images, self.training))
        return real(self, images, *rest)

    monkeypatch.setattr(CCLNet, "encode", encode)
    return calls


def features(model, bank, batch_size=64, **more):
    return embed(model, bank, IR, batch_size=batch_size, precision="fp32", **more)["feature"]


@pytest.mark.parametrize("count, rank, rows", [(3, 0, slice(0, 0)), (3, 2, slice(4, 6))])
def test_a_process_embeds_its_share(model, banks, watched, count, rank, rows):
    """Two batches for three processes; a process without a batch embeds an image in vain."""
    indices = np.array([7, 3, 9, 1, 0, 8])
    expected = features(model, banks[IR], 4, indices=indices)
    watched.clear()
    found = features(model, banks[IR], 4, indices=indices, processes=one_of(count, rank))
    torch.testing.assert_close(found, expected[rows])
    assert [len(images) for images, _ in watched] == [max(rows.stop - rows.start, 1)]


def test_images_are_not_augmented_and_the_model_evaluates(model, banks, watched):
    """In the order of the data set, and their mirror images if the method takes means over both."""
    found = features(model.train(), banks[IR], 8, mirrored=True)
    images = normalise(banks[IR].batch(np.arange(IMAGES)))
    given = [torch.cat([batch for batch, _ in watched][part::2]) for part in (0, 1)]
    assert torch.equal(given[0], images) and torch.equal(given[1], images.flip(3))
    assert not any(training for _, training in watched) and model.training
    with torch.no_grad():
        one, other = (model.eval().encode(x, IR)["feature"] for x in given)
    torch.testing.assert_close(found, (one + other) / 2)
    assert float(found.norm(dim=1).max()) < 1 - 1e-4


def test_an_epoch_begins_with_what_its_method_needs(model, banks):
    settings = tiny_settings(METHOD__NAME="rpnr", METHOD__LINK_BY="projection")
    found = embed_all(model, banks, settings.method(**settings.of_method), settings)
    assert set(found) == {"feature", "projection"}
    torch.testing.assert_close(found["feature"][IR], features(model, banks[IR], mirrored=True))


def test_broken_embeddings_are_counted_and_named(model, banks, monkeypatch):
    def encode(self, images, *rest, real=CCLNet.encode):
        images[[3, 9]] = torch.nan
        return real(self, images, *rest)

    monkeypatch.setattr(CCLNet, "encode", encode)
    with pytest.raises(NonFinite) as error:
        features(model, banks[IR])
    assert error.value.term.endswith("feature of 2 ir images") and error.value.images == banks[IR].names([3, 9])
