"""CLIP in, image tower and text tower out; open_clip does the work.

Weights are one of OpenAI's, or any OpenAI-format CLIP whose image tower is a ModifiedResNet or a vision transformer:
kind, widths and depths are read from the names and shapes of the weights.
"""
import hashlib
import os

import torch
from open_clip import get_tokenizer
from open_clip.model import build_model_from_openai_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained_from_url, get_pretrained_url, list_pretrained_models_by_tag
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from model.archive import is_torchscript, read_torchscript
from utils.errors import UserError, explained, quoted
from utils.structure import WEIGHTS, check_plain, must_fit, table, tensor

OPENAI_MODEL = "RN50"
CACHE_DIR = os.path.expanduser("~/.cache/clip")
TEXT_KEYS = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection")
RESNET_KEYS = ("visual.conv1.weight", "visual.layer4.0.conv1.weight", "visual.attnpool.q_proj.weight")
VIT_KEYS = ("visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.weight",
            "visual.ln_post.weight", "visual.proj")
KINDS = {"resnet": "a ResNet", "vit": "a vision transformer"}
HEAD_WIDTH = 64                     # numbers of a head, in all of OpenAI's transformers and attention pools
SIZE_KEYS = ("input_resolution", "context_length", "vocab_size")   # facts beside the weights


def load_clip(weights="openai", name=OPENAI_MODEL):
    """CLIP with fp32 weights, in evaluation mode: an `open_clip.CLIP`, `.visual` a ModifiedResNet or VisionTransformer.

    Args:
        weights: "openai" (downloaded, checksum-verified and cached by open_clip) or the path of a TorchScript archive
            or a state dict; name: open_clip's name of OpenAI's model. Beside a file "RN50" says nothing.
    Raises:
        UserError: the weights are missing, unreadable, not finite, no CLIP, or of another kind than the name's.
    """
    path = _download(name) if weights == "openai" else weights
    state = {k: v.float() for k, v in _read_state_dict(path).items() if k not in SIZE_KEYS}
    kind = _check_clip(state, path)
    named = "vit" if name.startswith("ViT") else "resnet"
    if name != OPENAI_MODEL and named != kind:
        raise UserError(f"MODEL.NAME is {name}, {KINDS[named]}, but the CLIP weights {path} hold {KINDS[kind]}; leave "
                        "MODEL.NAME and its settings out (a file's kind is read from its weights), or choose another "
                        "MODEL.CLIP_WEIGHTS")
    with explained(f"CLIP weights {quoted(path)} do not fit together", "expected the state dict of one OpenAI-format "
                   "CLIP. Download the file again or choose another MODEL.CLIP_WEIGHTS"):
        model = build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32)
        model.float().load_state_dict(state)   # the builder casts to fp16 on the way in
    return model.eval()


def _download(name):
    url = get_pretrained_url(name, "openai")
    if not url:
        raise UserError(f"MODEL.NAME is {name}; choose {' or '.join(list_pretrained_models_by_tag('openai'))}")
    place = os.path.join(CACHE_DIR, os.path.basename(url))
    with explained(f"CLIP weights could not be downloaded from {url}",
                   f"download the file with a browser to {place}, or set MODEL.CLIP_WEIGHTS to its path"):
        return download_pretrained_from_url(url, cache_dir=CACHE_DIR)


def _read_state_dict(path):
    if not os.path.isfile(path):
        raise UserError(f"CLIP weights {quoted(path)} are missing; set MODEL.CLIP_WEIGHTS to \"openai\" (downloads "
                        "MODEL.NAME) or to the path of a TorchScript archive or state dict")
    with explained(f"CLIP weights {quoted(path)} cannot be read", "expected a TorchScript archive or a state dict of "
                   "tensors, of which nothing is run. Download the file again, or convert it where you trust it: "
                   "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), OUT)"):
        if is_torchscript(path):
            content = read_torchscript(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {str(k).removeprefix("module."): v for k, v in content["state_dict"].items()}
    what, advice = f"the CLIP weights file {quoted(path)}", "Download it again or choose another MODEL.CLIP_WEIGHTS"
    must_fit(content, check_plain, what, advice)
    return must_fit(content, table(tensor(dtype=WEIGHTS)), what, advice)


def _check_clip(state, path):
    """Return the kind of a CLIP's image tower, "resnet" or "vit". Raises: UserError: something is missing or broken."""
    kind = "vit" if any(k.startswith(("visual.transformer.", "visual.class_embedding")) for k in state) else "resnet"
    missing = [k for k in (VIT_KEYS if kind == "vit" else RESNET_KEYS) if k not in state]
    if missing:
        raise UserError(f"CLIP weights {quoted(path)} hold no whole image tower ({', '.join(missing)} missing); "
                        "expected OpenAI's names of a ModifiedResNet (RN50 and its relatives) or a vision transformer "
                        "(ViT-B-16 and its relatives). Choose another MODEL.CLIP_WEIGHTS")
    width = len(state["visual.class_embedding"]) if kind == "vit" else HEAD_WIDTH
    if width % HEAD_WIDTH or width < HEAD_WIDTH:
        raise UserError(f"CLIP weights {quoted(path)} hold a vision transformer of width {width}; expected a multiple "
                        f"of {HEAD_WIDTH}, the width of each head in OpenAI's format. Choose another "
                        "MODEL.CLIP_WEIGHTS")
    missing = [k for k in TEXT_KEYS if k not in state]
    if missing:
        raise UserError(f"CLIP weights {quoted(path)} lack the text tower ({', '.join(missing)}); expected a whole "
                        "CLIP. Choose another MODEL.CLIP_WEIGHTS")
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"CLIP weights {quoted(path)} hold NaN or Inf in {name}; expected finite values. "
                            "Download the file again")
    return kind


def weights_digest(clip):
    """SHA-256 of the weights of a CLIP, to tell whether a file of the same name changed."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_image_tower(state, heads=None):
    """Build a ModifiedResNet or VisionTransformer of the sizes in a `CCLNet`'s state dict; weights are not copied.

    Args: state: names without "tower." and "layers."; heads: None: as many as OpenAI's models of this width have.
    """
    if "class_embedding" in state:
        width, patch = len(state["class_embedding"]), state["stems.rgb.weight"].shape[-1]
        blocks = len({k.split(".")[2] for k in state if k.startswith("transformer.resblocks.")})
        return VisionTransformer(patch, patch, width, blocks, heads or width // HEAD_WIDTH, mlp_ratio=4.0,
                                 output_dim=state["proj"].shape[1], act_layer=QuickGELU)
    layers = [len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
    width = state["layer1.0.conv1.weight"].shape[0]
    return ModifiedResNet(layers, output_dim=state["attnpool.c_proj.weight"].shape[0],
                          heads=heads or width * 32 // HEAD_WIDTH, image_size=7 * 32, width=width)


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
