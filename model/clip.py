"""CLIP in, image tower and text tower out; open_clip does the work.

Weights are OpenAI's RN50 or any OpenAI-format CLIP with a ModifiedResNet image tower: widths and depths are read
from the shapes of the weights.
"""
import hashlib
import os
from urllib.error import URLError

import torch
from open_clip import get_tokenizer
from open_clip.model import build_model_from_openai_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained_from_url, get_pretrained_url
from torch import nn

from model.archive import is_torchscript, read_torchscript
from utils.errors import UserError, is_out_of_memory, quoted
from utils.structure import WEIGHTS, check_plain, must_fit, table, tensor

OPENAI_MODEL = "RN50"
CACHE_DIR = os.path.expanduser("~/.cache/clip")
TEXT_KEYS = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection")
SIZE_KEYS = ("input_resolution", "context_length", "vocab_size")   # facts beside the weights


def load_clip(weights="openai"):
    """CLIP with fp32 weights, in evaluation mode: an `open_clip.CLIP` whose `.visual` is a ModifiedResNet.

    Args:
        weights: "openai" (RN50: downloaded, checksum-verified and cached by open_clip) or the path of a
            TorchScript archive or a state dict.
    Raises:
        UserError: the weights are missing, unreadable, not finite, or no ModifiedResNet CLIP.
    """
    path = _download() if weights == "openai" else weights
    state = {k: v.float() for k, v in _read_state_dict(path).items() if k not in SIZE_KEYS}
    _check_clip(state, path)
    try:
        model = build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32)
        model.float().load_state_dict(state)   # the builder casts to fp16 on the way in
    except Exception as error:          # shapes that do not fit raise many kinds, in open_clip and torch
        if is_out_of_memory(error):
            raise
        raise UserError(f"CLIP weights {quoted(path)} do not fit together: {_first_line(error)}; expected the state "
                        "dict of one OpenAI-format CLIP. Download the file again or choose another MODEL.CLIP_WEIGHTS")
    return model.eval()


def _first_line(error):
    return " ".join(str(error).split())[:200]


def _download():
    url = get_pretrained_url(OPENAI_MODEL, "openai")
    try:
        return download_pretrained_from_url(url, cache_dir=CACHE_DIR)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(f"CLIP weights could not be downloaded from {url} ({_first_line(error)}); download the file "
                        f"with a browser to {os.path.join(CACHE_DIR, os.path.basename(url))}, or set "
                        "MODEL.CLIP_WEIGHTS to its path")


def _read_state_dict(path):
    if not os.path.isfile(path):
        raise UserError(f"CLIP weights {quoted(path)} are missing; set MODEL.CLIP_WEIGHTS to \"openai\" (downloads "
                        "RN50) or to the path of a TorchScript archive or state dict")
    try:
        content = read_torchscript(path) if is_torchscript(path) else torch.load(path, map_location="cpu",
                                                                                 weights_only=True)
    except Exception as error:                 # torch raises many kinds on damaged files
        if is_out_of_memory(error):
            raise
        raise UserError(f"CLIP weights {quoted(path)} cannot be read ({_first_line(error)}); expected a TorchScript "
                        "archive or a state dict of tensors, of which nothing is run. Download the file again, or "
                        "convert it where you trust it: torch.save(torch.jit.load(FILE, 'cpu').state_dict(), OUT)")
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {str(k).removeprefix("module."): v for k, v in content["state_dict"].items()}
    what, advice = f"the CLIP weights file {quoted(path)}", "Download it again or choose another MODEL.CLIP_WEIGHTS"
    must_fit(content, check_plain, what, advice)
    return must_fit(content, table(tensor(dtype=WEIGHTS)), what, advice)


def _check_clip(state, path):
    if not any(k.startswith("visual.layer4.") for k in state) or "visual.attnpool.q_proj.weight" not in state:
        kind = "a vision transformer" if "visual.proj" in state else "no CLIP image tower"
        raise UserError(f"CLIP weights {quoted(path)} hold {kind}; expected a ModifiedResNet (RN50 and its relatives), "
                        "with visual.layer1 to layer4 and visual.attnpool. Choose another MODEL.CLIP_WEIGHTS")
    missing = [k for k in TEXT_KEYS if k not in state]
    if missing:
        raise UserError(f"CLIP weights {quoted(path)} lack the text tower ({', '.join(missing)}); expected a whole "
                        "CLIP. Choose another MODEL.CLIP_WEIGHTS")
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"CLIP weights {quoted(path)} hold NaN or Inf in {name}; expected finite values. "
                            "Download the file again")


def weights_digest(clip):
    """SHA-256 of the weights of a CLIP, to tell whether a file of the same name changed."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_image_tower(state):
    """A ModifiedResNet of the sizes found in a state dict without "visual." prefix; weights are not copied."""
    layers = [len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
    width = state["layer1.0.conv1.weight"].shape[0]
    return ModifiedResNet(layers, output_dim=state["attnpool.c_proj.weight"].shape[0], heads=width * 32 // 64,
                          image_size=7 * 32, width=width)


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

    def train(self, mode=True):
        """Stay in evaluation mode: the tower is frozen."""
        return super().train(False)

    @property
    def context_length(self):
        """Tokens that the tower can read."""
        return len(self.positional_embedding)

    def forward(self, embeddings):
        """Text features (K, E), not normalised, of token embeddings (K, L, W) whose last token is EOT.

        The mask is causal: what would follow the EOT token cannot change its output, so callers leave it out.
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        return self.ln_final(x[:, -1]) @ self.text_projection


def tokenize(text, context_length=77):
    """CLIP's token ids of one text: (1, context_length) int64, zeros behind the EOT token."""
    return get_tokenizer("RN50", context_length=context_length)([text])
