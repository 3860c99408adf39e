"""Random streams: another for every seed, purpose, modality, epoch and step; the same for the same name."""
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from data.images import ImageBank
from model.clip import TextTower, load_clip
from model.prompt import PromptLearner
from processor.prompt import PromptBatches, PromptState
from processor.train import Batches
from tests.tiny import EACH, PEOPLE, tiny_banks, tiny_prompt_settings, tiny_settings
from utils.modality import Modality
from utils.seeding import numpy_rng, torch_rng

NAMES = [(1,), (2,), (1, "sampler"), (1, "augment"), (1, "sampler", "rgb", 1), (1, "sampler", "ir", 1),
         (1, "sampler", "rgb", 2), (2, "sampler", "rgb", 1), (1, "augment", "rgb", 1), (1, "augment", "rgb", 1, 0),
         (1, "augment", "rgb", 1, 1), (1, "augment", "rgb", 11), (1, "augment", "rgb", 2, 0), (0, "prompts", "rgb"),
         (1, "prompts", "rgb"), (1, "prompts", "ir"), (1, "rgb", "prompts")]
LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}


@pytest.mark.parametrize("draw", [lambda *name: numpy_rng(*name).random(4).tolist(),
                                  lambda *name: torch.rand(4, generator=torch_rng(*name)).tolist()],
                         ids=["numpy", "torch"])
def test_every_name_has_a_stream_of_its_own(draw):
    drawn = [draw(*name) for name in NAMES]
    assert drawn == [draw(*name) for name in NAMES]
    assert all(a != b for a, b in itertools.combinations(drawn, 2))


def test_streams_are_local():
    """Drawing from a stream leaves the global random states of NumPy and PyTorch alone."""
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.random(), torch.rand(1).item()
    np.random.seed(0)
    torch.manual_seed(0)
    numpy_rng(1, "sampler").random(9)
    torch.rand(9, generator=torch_rng(1, "prompts"))
    assert (np.random.random(), torch.rand(1).item()) == expected


def same_images(count=PEOPLE * EACH):
    """Banks in which all images are one image, so that batches differ by their augmentation alone."""
    one = tiny_banks()[Modality.RGB].images[:1]
    return {m: ImageBank(np.repeat(one, count, axis=0)) for m in Modality}


def batches(seed=1, epoch=1):
    settings = tiny_settings(SEED=seed, INPUT__PAD=4, INPUT__GREY=0.5, INPUT__ERASE=0.5, SAMPLER__INSTANCES=4)
    return Batches(same_images(), LABELS, settings, epoch)


def test_batches_differ_between_epochs_seeds_and_modalities():
    base, again, epoch, seed = (b.positions for b in (batches(), batches(), batches(epoch=2), batches(seed=2)))
    for m in Modality:
        np.testing.assert_array_equal(base[m], again[m])
        assert (base[m] != epoch[m]).any() and (base[m] != seed[m]).any()
    assert (base[Modality.RGB] != base[Modality.IR]).any()


def test_augmentation_differs_between_steps_epochs_seeds_and_modalities():
    settings = dataclasses.replace(batches().settings, augmentation={
        m: batches().settings.augmentation[Modality.RGB] for m in Modality})      # grey in both: the same policy

    def images(modality, step, seed=1, epoch=1):
        return Batches(same_images(), LABELS, dataclasses.replace(settings, seed=seed), epoch)[step].images[modality]

    base = images(Modality.RGB, 0)
    assert torch.equal(base, images(Modality.RGB, 0))
    for other in (images(Modality.RGB, 1), images(Modality.RGB, 0, epoch=2), images(Modality.RGB, 0, seed=2),
                  images(Modality.IR, 0)):
        assert not torch.equal(base, other)
    assert not torch.equal(base[0], base[1])        # nor are two images of a batch augmented alike


def prompt_batches(seed=1, epoch=1):
    return PromptBatches(tiny_banks(), LABELS, tiny_prompt_settings(SEED=seed), epoch).order


def test_prompt_batches_differ_between_epochs_seeds_and_modalities():
    base, again, epoch, seed = prompt_batches(), prompt_batches(), prompt_batches(epoch=2), prompt_batches(seed=2)
    for m in Modality:
        np.testing.assert_array_equal(base[m], again[m])
        assert (base[m] != epoch[m]).any() and (base[m] != seed[m]).any()
    assert (base[Modality.RGB] != base[Modality.IR]).any()


def test_repeats_of_the_smaller_modality_are_drawn_alike():
    labels = {Modality.RGB: np.zeros(6000, int), Modality.IR: np.array([0, -1, 0, 0])}
    order = PromptBatches(tiny_banks(), labels, tiny_prompt_settings(), 1).order
    counts = np.bincount(order[Modality.IR])
    assert len(order[Modality.IR]) == 6000 and counts[1] == 0
    assert chisquare(counts[[0, 2, 3]]).pvalue > 0.01


@pytest.fixture(scope="module")
def text(tiny_clip_file):
    return TextTower(load_clip(tiny_clip_file))


def test_prompts_start_from_a_normal_distribution_of_deviation_0_02(text):
    start = PromptLearner(400, Modality.RGB, text, torch_rng(1, "prompts", "rgb")).context.detach()
    assert start.shape == (400, 4, text.positional_embedding.shape[1])
    error = 0.02 / start.numel() ** 0.5
    assert abs(float(start.mean())) < 4 * error
    assert float(start.std()) == pytest.approx(0.02, abs=4 * error)
    shares = [(start.abs() < n * 0.02).float().mean().item() for n in (1, 2, 3)]
    assert shares == pytest.approx([0.683, 0.954, 0.997], abs=0.01)
    words = start.flatten(1)
    assert len(torch.unique(words, dim=0)) == 400       # every cluster starts elsewhere


def test_the_state_of_prompts_is_their_learned_words_alone(text):
    """The template's words are the text tower's, and a state made with another would bring them back."""
    prompts = PromptLearner(3, Modality.RGB, text)
    assert list(prompts.state_dict()) == ["context"]
    assert [name for name, _ in prompts.named_buffers()] == ["prefix", "suffix"]


def test_prompts_start_elsewhere_for_another_seed_and_modality(text):
    def starts(seed):
        prompts = PromptState(text, LABELS, tiny_prompt_settings(SEED=seed)).prompts
        return {m: prompts[m].context.detach() for m in Modality}

    base, again, other = starts(1), starts(1), starts(2)
    for m in Modality:
        assert torch.equal(base[m], again[m]) and not torch.equal(base[m], other[m])
    assert not torch.equal(base[Modality.RGB], base[Modality.IR])


def test_streams_of_every_version_are_the_same():
    """Runs of this version are repeated by the next: the streams of a name are fixed numbers."""
    assert torch_rng(1, "prompts", "rgb").initial_seed() == 2603918767720312279
    assert numpy_rng(1, "sampler", "rgb", 3).integers(0, 1000, 4).tolist() == [61, 213, 551, 882]
