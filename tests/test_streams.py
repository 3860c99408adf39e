"""Random streams: another for every seed, purpose, modality, epoch and step; the same for the same name."""
import itertools

import numpy as np
import pytest
import torch

from data.batches import Batches, PromptBatches
from model.clip import TextTower, load_clip
from model.prompt import PromptLearner
from processor.prompt import PromptState
from tests.tiny import LABELS, tiny_banks, tiny_prompt_settings, tiny_settings
from utils.modality import Modality
from utils.seeding import numpy_rng, torch_rng

NAMES = [(1,), (2,), (1, "sampler"), (1, "augment"), (1, "sampler", "rgb", 1), (1, "sampler", "ir", 1),
         (1, "sampler", "rgb", 2), (2, "sampler", "rgb", 1), (1, "augment", "rgb", 1), (1, "augment", "rgb", 1, 0),
         (1, "augment", "rgb", 1, 1), (1, "augment", "rgb", 11), (1, "augment", "rgb", 2, 0), (0, "prompts", "rgb"),
         (1, "prompts", "rgb"), (1, "prompts", "ir"), (1, "rgb", "prompts")]
RGB, IR = Modality


@pytest.mark.parametrize("draw", [lambda *name: numpy_rng(*name).random(4).tolist(),
                                  lambda *name: torch.rand(4, generator=torch_rng(*name)).tolist()],
                         ids=["numpy", "torch"])
def test_every_name_has_a_stream_of_its_own(draw):
    """Drawing from one leaves the global random states of NumPy and PyTorch alone."""
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    drawn = [draw(*name) for name in NAMES]
    assert drawn == [draw(*name) for name in NAMES]
    assert all(a != b for a, b in itertools.combinations(drawn, 2))
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_streams_of_every_version_are_the_same():
    """Runs of this version are repeated by the next: the streams of a name are fixed numbers."""
    assert torch_rng(1, "prompts", "rgb").initial_seed() == 2603918767720312279
    assert numpy_rng(1, "sampler", "rgb", 3).integers(0, 1000, 4).tolist() == [61, 213, 551, 882]


@pytest.mark.parametrize("positions", [
    lambda seed, epoch: Batches(tiny_banks(), LABELS, tiny_settings(SEED=seed), epoch).positions,
    lambda seed, epoch: PromptBatches(None, LABELS, tiny_prompt_settings(SEED=seed), epoch).order])
def test_batches_differ_between_epochs_seeds_and_modalities(positions):
    base, again, epoch, seed = (positions(*name) for name in ((1, 1), (1, 1), (1, 2), (2, 1)))
    assert (base[RGB] != base[IR]).any()
    for m in Modality:
        assert (base[m] == again[m]).all() and (base[m] != epoch[m]).any() and (base[m] != seed[m]).any()


@pytest.fixture(scope="module")
def text(tiny_clip_file):
    return TextTower(load_clip(tiny_clip_file))


def test_prompts_start_from_a_normal_distribution_of_deviation_0_02(text):
    prompts = PromptLearner(400, RGB, text, torch_rng(1, "prompts", "rgb"))
    start = prompts.context.detach()
    assert start.shape == (400, 4, text.positional_embedding.shape[1])
    error = 0.02 / start.numel() ** 0.5
    assert abs(float(start.mean())) < 4 * error
    assert float(start.std()) == pytest.approx(0.02, abs=4 * error)
    assert len(torch.unique(start.flatten(1), dim=0)) == 400       # every cluster starts elsewhere
    with torch.no_grad():
        some = torch.tensor([2, 7])         # a text does not depend on the others
        torch.testing.assert_close(text(prompts(torch.arange(9)))[some], text(prompts(some)))
    # The template's words are the text tower's: a state made with another would bring them back.
    assert list(prompts.state_dict()) == ["context"]


def test_prompts_start_elsewhere_for_another_seed_and_modality(text):
    one, again, other = (PromptState(text, LABELS, tiny_prompt_settings(SEED=seed)).prompts for seed in (1, 1, 2))
    for m in Modality:
        assert torch.equal(one[m].context, again[m].context) and not torch.equal(one[m].context, other[m].context)
    assert not torch.equal(one[RGB].context, one[IR].context)
