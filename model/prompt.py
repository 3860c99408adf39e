"""Learned prompts: one sentence per cluster in which four words are vectors that learn."""
import torch
from torch import nn

from model.clip import tokenize
from utils.modality import Modality

TEMPLATES = {Modality.RGB: "A visible photo of a X X X X person.",
             Modality.IR: "An infrared photo of a X X X X person."}
LEARNED_WORDS = 4


class PromptLearner(nn.Module):
    """The prompts of one modality's clusters.

    Args:
        clusters: K, sentences to learn; modality: chooses the template.
        text: the `TextTower` that will read them; its token embeddings are used, not copied.
        generator: torch generator of the initial vectors, N(0, 0.02).
    """

    def __init__(self, clusters, modality, text, generator=None):
        super().__init__()
        width = text.positional_embedding.shape[1]
        self.context = nn.Parameter(torch.randn(clusters, LEARNED_WORDS, width, generator=generator) * 0.02)
        tokens = tokenize(TEMPLATES[modality], len(text.positional_embedding))[0]
        first = int((tokens == tokenize("X")[0, 1]).nonzero()[0])
        end = int(tokens.argmax()) + 1                      # EOT has the largest id
        with torch.no_grad():
            embedded = text.token_embedding(tokens[:end].to(text.positional_embedding.device)).detach()
        self.register_buffer("prefix", embedded[:first], persistent=False)
        self.register_buffer("suffix", embedded[first + LEARNED_WORDS:], persistent=False)

    def forward(self, labels=None):
        """Token embeddings (K, L, W) up to EOT of the clusters in labels (K,); of all clusters if None."""
        context = self.context if labels is None else self.context[labels]
        prefix, suffix = (part.expand(len(context), -1, -1) for part in (self.prefix, self.suffix))
        return torch.cat([prefix, context, suffix], dim=1)
