"""CLIP from a file or from OpenAI, its text tower and its tokens. open_clip does the work.

Any OpenAI-format CLIP will do whose image tower is a ModifiedResNet or a vision transformer: kind, widths and depths
are read from the names and shapes of its weights. open_clip is slow to import, so functions import it when called.
"""
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from model.state_dict import OTHER_WEIGHTS, check_state_dict, downloading, read_state_dict
from model.towers.tower import Tower
from utils.errors import UserError, explained, quoted

CACHE_DIR = os.path.expanduser("~/.cache/clip")
DEFAULT_NAME = "RN50"               # of MODEL.NAME, which beside a file says nothing
TEXT_KEYS = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection")
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")     # what archives hold beside weights
QUICK_GELU, GELU = "quick_gelu", "gelu"     # x sigmoid(1.702 x), and the Gaussian one
HEAD_WIDTH = 64                     # numbers of an attention head, in all of OpenAI's CLIPs


def load_clip(weights="openai", name=DEFAULT_NAME, activation="auto"):
    """Load a CLIP: an `open_clip.CLIP` with fp32 weights, in evaluation mode.

    Args:
        weights: "openai" (downloaded, verified and cached by open_clip) or a file (`read_state_dict`);
        name: open_clip's name of OpenAI's model; activation: of `find_activation`.
    Raises: UserError: the weights are missing, unreadable, not finite, no CLIP, or of another kind than the name's.
    """
    from open_clip.model import build_model_from_openai_state_dict

    path = _download(name) if weights == "openai" else weights
    state = {key: value.float() if value.is_floating_point() else value
             for key, value in read_state_dict(path).items() if key not in NO_WEIGHTS}
    transformer = "visual.class_embedding" in state
    needed = ("visual.conv1.weight", *TEXT_KEYS, *(("visual.proj",) if transformer else ()))
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"weights {quoted(path)} lack {', '.join(missing)}; expected a whole CLIP, image and text "
                        f"tower, a ResNet or a vision transformer under OpenAI's names. {OTHER_WEIGHTS}")
    named, found = (("a ResNet", "a vision transformer")[is_one] for is_one in (name.startswith("ViT"), transformer))
    if name != DEFAULT_NAME and named != found:
        raise UserError(f"MODEL.NAME is {name}, {named}, but the weights {quoted(path)} hold {found}; leave MODEL.NAME "
                        "out, for a file's kind is read from its weights, or set MODEL.CLIP_WEIGHTS to another file")
    with explained(f"weights {quoted(path)} do not fit together", f"expected those of one CLIP. {OTHER_WEIGHTS}"):
        quick = find_activation(weights, activation)[0] == QUICK_GELU
        model = build_model_from_openai_state_dict(dict(state), quick, torch.float32).float()
    check_state_dict(state, model.state_dict(), f"the file {quoted(path)}", OTHER_WEIGHTS)
    model.load_state_dict(state)        # open_clip has cast them to fp16
    return model.eval()


def find_activation(weights, asked="auto"):
    """Find the activation of a CLIP's transformers, which its weights do not tell: QuickGELU or GELU.

    OpenAI's CLIPs have QuickGELU, and most that open_clip trained have GELU. The name of the file or of its folder
    tells where it is one that open_clip downloads, or says quickgelu, LAION, DataComp or CommonPool.

    Args: weights: of `load_clip`; asked: MODEL.ACTIVATION, "auto" for that of the name.
    Returns: "quick_gelu" or "gelu"; from what that is known.
    Raises: UserError: the file is open_clip's, and its name does not tell which.
    """
    if asked != "auto":
        return asked, "MODEL.ACTIVATION"
    if weights == "openai":
        return QUICK_GELU, "as all of OpenAI's"
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained  # slow to import

    path = Path(weights).absolute()
    names = {part.rpartition("--")[2].lower() for part in path.parts[-4:]} - {""}
    for known in (get_pretrained_cfg(*pair) for pair in list_pretrained()):
        repository = known["hf_hub"].strip("/").split("/")[1:2]
        if names & {name.lower() for name in (known["url"].rpartition("/")[2], *repository)}:
            return QUICK_GELU if known.get("quick_gelu") else GELU, "by open_clip's list of names"
    if "quickgelu" in path.name.lower().replace("_", ""):
        return QUICK_GELU, "by the file's name"
    if any(word in path.name.lower() for word in ("laion", "datacomp", "commonpool")):
        return GELU, "by the file's name"
    if path.name.startswith("open_clip_"):
        raise UserError(f"weights {quoted(weights)} are open_clip's, and the name does not tell their activation; set "
                        "MODEL.ACTIVATION gelu (LAION's, DataComp's and most others) or quick_gelu (OpenAI's, "
                        "MetaCLIP's, DFN's)")
    return QUICK_GELU, "as OpenAI's; its name does not tell"


def _download(name):
    from open_clip.pretrained import download_pretrained_from_url, get_pretrained_url, list_pretrained_models_by_tag

    url = get_pretrained_url(name, "openai")
    if not url:
        raise UserError(f"MODEL.NAME is {name}; choose {' or '.join(list_pretrained_models_by_tag('openai'))}")
    place = os.path.join(CACHE_DIR, os.path.basename(url))
    with downloading(f"CLIP weights from {url}",
                     f"download the file with a browser to {place}, or set MODEL.CLIP_WEIGHTS to its path"):
        return download_pretrained_from_url(url, cache_dir=CACHE_DIR)


def resize_positions(positions, rows, columns, grid=None):
    """Resize the position embedding of a grid bilinearly (align_corners False); the first token's row is kept.

    Args: positions: (1 + N, D); grid: (rows, columns) of the N; None: a square. Returns: (1 + rows * columns, D).
    """
    first, rest = positions.detach()[:1], positions.detach()[1:]
    rest = rest.T.reshape(1, -1, *(grid or 2 * [round(len(rest) ** 0.5)]))
    rest = F.interpolate(rest, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([first, rest.flatten(2)[0].T])


class ClipTower(Tower):
    """The image tower of a CLIP. A subclass is made of (`load_clip(...).visual`, height, width, stride)."""

    untrained, has_text = "baseline CLIP", True

    @classmethod
    def load(cls, weights, *, height, width, name=DEFAULT_NAME, stride=None, seed=1, activation="auto"):
        """Build the tower of a CLIP; arguments as `Tower.load`. It has no new layers."""
        clip = load_clip(weights, name, activation)
        if not cls.recognises(clip.state_dict()):
            raise UserError(f"MODEL.TOWER is {cls.kind}, but the weights {weights} are of CLIP's other kind of image "
                            "tower; leave MODEL.TOWER out, or choose other weights")
        return cls(clip.visual, height, width, stride)


class TextTower(nn.Module):
    """CLIP's text tower from token embeddings on, frozen and in evaluation mode.

    Args: clip: an `open_clip.CLIP`; its modules are shared, not copied.
    """

    def __init__(self, clip):
        super().__init__()
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.positional_embedding = clip.positional_embedding
        self.text_projection = clip.text_projection
        self.token_embedding = clip.token_embedding
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, embeddings):
        """Embed texts: (K, E), not normalised. Args: embeddings: of tokens, (K, L, W); the last one is EOT.

        The mask is causal: what would follow the EOT token cannot change its output, so callers leave it out.
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        return self.ln_final(x[:, -1]) @ self.text_projection


def tokenize(text, context_length=77):
    """Return CLIP's token ids of one text: (1, context_length) int64, zeros behind the EOT token."""
    from open_clip.tokenizer import tokenize as tokens_of

    return tokens_of([text], context_length)
