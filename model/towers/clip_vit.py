"""CLIP's vision transformer as CCLNet's tower."""
import torch
from torch import nn

from model.clip import GELU, HEAD_WIDTH, QUICK_GELU, ClipTower, resize_positions
from model.towers.tower import blocks_of
from utils.errors import UserError


class ClipViT(ClipTower):
    """CLIP's vision transformer with two patch convolutions, one per modality; everything behind them is shared.

    Args:
        visual: `load_clip(...).visual`, any width and depth; its modules are used, not copied. Its position embedding
        is resized to the grid of patches here, once; the resized one is what learns and what checkpoints hold.
        height, width: pixels of the images; what is left of the last whole patch is not seen.
        stride: pixels from a patch to the next; smaller than a patch they overlap. None: the size of a patch.
    Raises: UserError: a stride that leaves gaps, or images smaller than a patch.
    """

    kind, landmarks = "clip_vit", ("visual.class_embedding", "class_embedding")
    unsaid = {"activation": QUICK_GELU}

    def __init__(self, visual, height, width, stride=None):
        patch = visual.conv1.kernel_size[0]
        stride = patch if stride is None else stride
        if not 1 <= stride <= patch:
            raise UserError(f"MODEL.STRIDE is {stride}, but the patches of the vision transformer have {patch} pixels "
                            f"and none may be skipped; expected 1 to {patch}. Set MODEL.STRIDE {patch} for patches "
                            "that do not overlap")
        for key, pixels in (("HEIGHT", height), ("WIDTH", width)):
            if pixels < patch:
                raise UserError(f"INPUT.{key} is {pixels}; expected {patch} or more, the pixels of a patch")
        visual.conv1.stride = (stride, stride)
        super().__init__(visual.conv1, height, width)
        self.stride = stride
        self.class_embedding, self.proj = visual.class_embedding, visual.proj
        self.positional_embedding = nn.Parameter(resize_positions(
            visual.positional_embedding, (height - patch) // stride + 1, (width - patch) // stride + 1))
        self.ln_pre, self.transformer, self.ln_post = visual.ln_pre, visual.transformer, visual.ln_post

    @classmethod
    def rebuild(cls, state, told):
        """Build the tower of a checkpoint; where it does not say its heads, they are 64 wide, as OpenAI's."""
        from open_clip.transformer import QuickGELU, VisionTransformer  # slow to import

        width, patch = len(state["class_embedding"]), state["stems.rgb.weight"].shape[-1]
        blocks = blocks_of(state, "transformer.resblocks.")
        activation = {QUICK_GELU: QuickGELU, GELU: nn.GELU}[told["activation"]]
        visual = VisionTransformer(patch, patch, width, blocks, told.get("heads", width // HEAD_WIDTH), mlp_ratio=4.0,
                                   output_dim=state["proj"].shape[1], act_layer=activation)
        return cls(visual, told["height"], told["width"], told.get("stride"))

    @property
    def feature_dim(self):
        """D, the length of a pooled feature."""
        return len(self.class_embedding)

    def trunk(self, x):
        """Run the transformer on patches (B, D, rows, columns).

        Returns: (B, D), the class token after the last norm; all tokens after it (B, 1 + rows * columns, D), for
        `project`. There is no generalised mean: the cube of a negative mean is no number to average.
        """
        patches = x.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positional_embedding
        tokens = self.ln_post(self.transformer(self.ln_pre(tokens)))
        return tokens[:, 0].float(), tokens

    def project(self, tokens):
        """Project the class token: (B, E), CLIP's joint space with texts, not normalised."""
        return (tokens[:, 0] @ self.proj).float()

    def describe(self):
        """Return what the weights' shapes do not say."""
        block = self.transformer.resblocks[0]
        return {**super().describe(), "stride": self.stride, "heads": block.attn.num_heads,
                "activation": GELU if isinstance(block.mlp.gelu, nn.GELU) else QUICK_GELU}
