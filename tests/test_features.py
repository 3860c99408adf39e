"""Embedding images: batch sizes, shares of processes, mirrored images, embeddings that are not finite."""
import re

import numpy as np
import pytest
import torch

import processor.features
from data.augment import normalise
from data.images import ImageBank
from model.cclnet import CCLNet
from processor.features import embed, grown_batch
from tests.tiny import IMAGES, one_of, tiny_banks, tiny_model
from utils.finite import NonFinite
from utils.modality import Modality


@pytest.mark.parametrize("count, rank, rows", [(3, 0, slice(0, 0)), (3, 1, slice(0, 4)), (3, 2, slice(4, 6)),
                                               (4, 2, slice(4, 4))])
def test_a_process_embeds_its_share(model, banks, monkeypatch, count, rank, rows):
    """Two batches for three or four processes; a process without a batch embeds an image in vain."""
    bank, indices = banks[Modality.RGB], np.array([7, 3, 9, 1, 0, 8])
    processes, sizes = one_of(count, rank), []
    expected = embed(model, bank, Modality.RGB, indices=indices, batch_size=4, precision="fp32")["feature"]

    def encode(self, images, *rest, real=CCLNet.encode):
        sizes.append(len(images))
        return real(self, images, *rest)

    monkeypatch.setattr(CCLNet, "encode", encode)
    found = embed(model, bank, Modality.RGB, indices=indices, batch_size=4, precision="fp32",
                  processes=processes)["feature"]
    torch.testing.assert_close(found, expected[rows])
    assert sizes == [max(rows.stop - rows.start, 1)]


def test_mirrored_features_are_means_over_both_images(tiny_clip_file, banks):
    model, bank = tiny_model(tiny_clip_file), banks[Modality.IR]
    found = embed(model, bank, Modality.IR, batch_size=8, precision="fp32", mirrored=True)["feature"]
    images = normalise(bank.batch(np.arange(IMAGES)))
    with torch.no_grad():
        one, other = (model.eval().encode_image(x, Modality.IR).feature for x in (images, images.flip(3)))
    torch.testing.assert_close(found, (one + other) / 2)
    assert float(found.norm(dim=1).max()) < 1 - 1e-4


def test_batches_grow_with_the_memory():
    """To the largest doubling that fits into four fifths of what is free, and never beyond 1024."""
    assert grown_batch(64, 100, 64 * 100 * 10) == 512
    assert grown_batch(64, 100, 64 * 100 * 10 - 1) == 256
    assert grown_batch(64, 100, 0) == 64 and grown_batch(64, 1, 10**12) == 1024 and grown_batch(2000, 1, 10**12) == 2000


def test_embedding_grows_on_a_gpu_and_shrinks_when_the_memory_is_used_up(model, monkeypatch):
    """A GPU is played by the CPU: 2 MB are given for every image of the first batch; more than 9 images do not fit."""
    sizes, real, given = [], CCLNet.encode, iter((92 * 10**6, 100 * 10**6))
    expected = embed(model, tiny_banks()[Modality.IR], Modality.IR, batch_size=64, precision="fp32")["feature"]
    monkeypatch.setattr(processor.features, "bytes_given", lambda device: next(given, 0))
    monkeypatch.setattr(processor.features, "bytes_free", lambda device: 50 * 10**6)

    def encode(self, images, *rest):
        if len(images) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return real(self, images, *rest)

    monkeypatch.setattr(CCLNet, "encode", encode)
    found = embed(model, ImageBank(tiny_banks()[Modality.IR].images), Modality.IR, batch_size=4, precision="fp32")
    assert sizes == [4, 8, 8, 8, 2]
    torch.testing.assert_close(found["feature"], expected)
    assert np.isfinite(found["feature"].numpy()).all()


def test_one_image_that_does_not_fit_is_an_error(model, monkeypatch):
    sizes = []

    def encode(self, images, *_):
        sizes.append(len(images))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CCLNet, "encode", encode)
    with pytest.raises(torch.OutOfMemoryError):
        embed(model, tiny_banks()[Modality.IR], Modality.IR, batch_size=4, precision="fp32")
    assert sizes == [4, 2, 1]


@pytest.mark.parametrize("broken, words", [([3], "feature of 1 ir image$"), ([3, 9], "feature of 2 ir images$")])
def test_broken_embeddings_are_counted(model, monkeypatch, broken, words):
    def encode(self, images, *rest, real=CCLNet.encode):
        found = real(self, images, *rest)
        found["feature"][broken] = torch.nan
        return found

    monkeypatch.setattr(CCLNet, "encode", encode)
    bank = tiny_banks()[Modality.IR]
    with pytest.raises(NonFinite) as error:
        embed(model, bank, Modality.IR, batch_size=64, precision="fp32")
    assert re.search(words, error.value.term) and error.value.images == bank.names(np.array(broken))
