"""Train the demo's small networks on synthetic people: its two CLIPs with captions, its narrow AGW with identities.

    OMP_NUM_THREADS=2 python tools/dev/train_demo_weights.py resnet                 # assets/demo_clip.pt
    OMP_NUM_THREADS=1 python tools/dev/train_demo_weights.py vit --steps 800        # assets/demo_vit_clip.pt
    OMP_NUM_THREADS=1 python tools/dev/train_demo_weights.py agw                    # assets/demo_agw.pth

So the shipped ones were made. The people, the cameras and their random streams are others than those of the demo's data
sets. CLIPs have OpenAI's format. The AGW has the names of ImageNet's ResNet-50; it learns to tell the people of each
modality apart by themselves, and nothing tells it that a visible and an infrared image show the same person.
"""
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error, whole_number  # noqa: E402

FILES = {"resnet": "demo_clip.pt", "vit": "demo_vit_clip.pt", "agw": "demo_agw.pth"}


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("kind", choices=FILES)
    parser.add_argument("--output", type=Path, help="the file to write; default: that of the kind in assets/")
    parser.add_argument("--steps", type=whole_number(1, 1_000_000), default=1200, help="default: 1200")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # noqa: E402
from open_clip.modified_resnet import AttentionPool2d  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.augment import LUMA, normalise  # noqa: E402
from data.demo import HEIGHT, WIDTH, caption, draw_camera, draw_people, render  # noqa: E402
from model.towers.agw import AGWPlain  # noqa: E402

STREAM = 7_000_000  # first word of every seed here; the demo's data sets have a small number there
PEOPLE, IMAGES, CAMERAS = 600, 8, 12        # images of each person, cameras of each modality
BATCH, LR, WARM_UP, SEED = 128, 1e-3, 100, 0
IMAGE_SIZE = (96, 48)  # pixels, height and width
EMBED_DIM, IMAGE_WIDTH, TEXT_WIDTH, TEXT_LAYERS = 128, 16, 64, 2
VIT_WIDTH, VIT_LAYERS, PATCH = 128, 3, 16
VOCABULARY, CONTEXT = 49408, 77
CHANNELS, BLOCKS = 8, (1, 1, 1, 1)      # of the AGW; ResNet-50: 64, (3, 4, 6, 3)
TEMPERATURE = 0.05                      # of its loss
# Mean norms at the end: CCLNet's losses do not normalise. Texts longer than this satisfy the prompt loss without
# pointing where their images lie, and then say little across modalities.
IMAGE_NORM, TEXT_NORM = 3.0, 3.0


class ResizedAttentionPool(AttentionPool2d):
    """Attention pool whose square position grid is resized bilinearly to the map it gets."""

    def forward(self, x):
        """Pool a map (B, D, h, w): (B, E)."""
        first, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        side = math.isqrt(len(grid))
        grid = F.interpolate(grid.T.reshape(1, -1, side, side), x.shape[-2:], mode="bilinear", align_corners=False)
        tokens = x.flatten(2).permute(2, 0, 1)
        tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
        tokens = tokens + torch.cat([first, grid.flatten(2)[0].T])[:, None]
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        return F.multi_head_attention_forward(
            tokens[:1], tokens, tokens, tokens.shape[-1], self.num_heads, None, bias, None, None, False, 0.0,
            self.c_proj.weight, self.c_proj.bias, training=self.training, need_weights=False,
            use_separate_proj_weight=True, q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight)[0][0]


def build_clip(words, kind, longest):
    """Build a small CLIP.

    Args: words: tokens that the captions use, all that its table holds; kind: of FILES; longest: tokens of a text.
    """
    vision = (CLIPVisionCfg(layers=VIT_LAYERS, width=VIT_WIDTH, patch_size=PATCH, image_size=IMAGE_SIZE)
              if kind == "vit" else CLIPVisionCfg(layers=(1, 1, 1, 1), width=IMAGE_WIDTH, image_size=224))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        text = CLIPTextCfg(longest, words, width=TEXT_WIDTH, heads=1, layers=TEXT_LAYERS)
        model = CLIP(EMBED_DIM, vision, text, quick_gelu=True)
    if kind == "resnet":        # its layer4 at stride 1, as CCLNet runs it
        model.visual.attnpool.__class__ = ResizedAttentionPool
        model.visual.layer4[0].avgpool = model.visual.layer4[0].downsample[0] = nn.Identity()
    return model


def draw_photos(people):
    """Draw all photos: (people, modality, IMAGES, 3, H, W) uint8; modality 0 is visible, 1 infrared."""
    photos = []
    for identity, person in enumerate(tqdm(people, "drawing")):
        rng = np.random.default_rng([STREAM, SEED, 2, identity])
        for infrared in (False,) * IMAGES + (True,) * IMAGES:
            camera = draw_camera(np.random.default_rng([STREAM, SEED, 1, rng.integers(CAMERAS)]), infrared)
            photo = Image.fromarray(render(person, camera, rng, HEIGHT, WIDTH))
            photos.append(np.asarray(photo.resize(IMAGE_SIZE[::-1], Image.Resampling.LANCZOS)))
    stacked = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()
    return stacked.view(len(people), 2, IMAGES, *stacked.shape[1:])


def tokenise(people):
    """Write captions (people, 3, 2, T) as positions in the second value, the sorted token ids in use.

    The three: visible, visible without colour, infrared; of each a sentence and a row of words.
    """
    texts = [caption(person, infrared, coloured, brief) for person in people
             for infrared, coloured in ((False, True), (False, False), (True, False)) for brief in (False, True)]
    tokens = open_clip.tokenizer.SimpleTokenizer()(texts, CONTEXT)
    tokens = tokens[:, :int(tokens.argmax(1).max()) + 1]
    used, positions = tokens.unique(return_inverse=True)
    return positions.view(len(people), 3, 2, -1), used


def augment(photos, rng):
    """Flip, shift and erase: (B, 3, H, W) uint8 -> normalised float32."""
    count, _, height, width = photos.shape
    images = normalise(photos)
    flip = torch.rand(count, generator=rng) < 0.5
    images[flip] = images[flip].flip(3)
    padded = F.pad(images, (4, 4, 4, 4))
    rows = torch.randint(9, (count, 1), generator=rng) + torch.arange(height)
    columns = torch.randint(9, (count, 1), generator=rng) + torch.arange(width)
    images = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None]]
    top = torch.randint(height, (count, 1), generator=rng)
    left = torch.randint(width, (count, 1), generator=rng)
    y, x = torch.arange(height)[None], torch.arange(width)[None]
    inside = ((y >= top) & (y < top + 24))[:, :, None] & ((x >= left) & (x < left + 16))[:, None]
    erased = inside & (torch.rand(count, 1, 1, generator=rng) < 0.3)
    return images.masked_fill(erased[..., None], 0.0).permute(0, 3, 1, 2)


def draw_images(photos, rng):
    """Draw photos of different people, every other one infrared, some visible ones made grey.

    Returns: people (B,), modalities (B,) as in `draw_photos`, images (B, 3, H, W) uint8, which were made grey (B,).
    """
    person = torch.randperm(len(photos), generator=rng)[:BATCH]
    infrared = torch.arange(BATCH) % 2
    images = photos[person, infrared, torch.randint(IMAGES, (BATCH,), generator=rng)]
    grey = (torch.rand(BATCH, generator=rng) < 0.4) & (infrared == 0)
    luma = (images[grey].float() * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    images[grey] = luma.to(torch.uint8).expand(-1, 3, -1, -1)
    return person, infrared, images, grey


def contrastive_loss(images, texts, names, scale):
    """Compute CLIP's symmetric loss of (B, E) features; pairs with the same caption name (B,) are all positives."""
    logits = scale * F.normalize(images) @ F.normalize(texts).T
    target = (names[:, None] == names).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def fit(network, rows, compute_loss, steps, betas):
    """Fit a network in place: a warm-up, then half a cosine. Args: rows: parameters that learn with it."""
    optimiser = torch.optim.AdamW([*network.parameters(), *rows], LR, betas=betas, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / WARM_UP, (1 + math.cos(math.pi * i / steps)) / 2))
    network.train().to(memory_format=torch.channels_last)
    for step in (progress := tqdm(range(steps), "training")):
        loss = compute_loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def trained_clip(kind, people, photos, steps):
    """Train a CLIP on photos and captions of them: the state dict of its file."""
    texts, used = tokenise(people)
    model, rng = build_clip(len(used), kind, texts.shape[-1]), torch.Generator().manual_seed(SEED)

    def compute_loss():
        person, infrared, images, grey = draw_images(photos, rng)
        uncoloured = grey | ((torch.rand(BATCH, generator=rng) < 0.4) & (infrared == 0))
        caption_kind = infrared * 2 + uncoloured.long()
        brief = torch.randint(2, (BATCH,), generator=rng)
        names = texts[person, caption_kind, 0].unique(dim=0, return_inverse=True)[1]
        image, scale = model.visual(augment(images, rng)), model.logit_scale.exp().clamp(max=100)
        text = model.encode_text(texts[person, caption_kind, brief])
        # each modality by itself: "visible" and "infrared" must not be what tells captions apart
        return sum(contrastive_loss(image[i::2], text[i::2], names[i::2], scale) for i in (0, 1)) / 2

    fit(model, [], compute_loss, steps, betas=(0.9, 0.98))
    scale_outputs(model, photos, texts)
    return openai_state(model, used)


def trained_agw(people, photos, steps):
    """Train an AGW by cross entropy among the people of each modality, by cosines with a row for each.

    One stem sees both modalities. Returns: the state dict of its file, in fp16.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        tower = AGWPlain(CHANNELS, BLOCKS, *IMAGE_SIZE)
    rng = torch.Generator().manual_seed(SEED)
    rows = nn.Parameter(0.02 * torch.randn(2, len(people), tower.feature_dim, generator=rng))

    def compute_loss():
        person, _, images, _ = draw_images(photos, rng)
        x = F.normalize(tower.trunk(tower.stem(augment(images, rng), "rgb"))[0], dim=1)
        return sum(F.cross_entropy(x[m::2] @ F.normalize(rows[m], dim=1).T / TEMPERATURE, person[m::2])
                   for m in (0, 1)) / 2

    fit(tower, [rows], compute_loss, steps, betas=(0.9, 0.999))
    return {re.sub(r"^(stems\.rgb|layers)\.", "", name): value.half().contiguous()
            for name, value in tower.state_dict().items()
            if not name.startswith("stems.ir.") and value.is_floating_point()}


@torch.no_grad()
def scale_outputs(model, photos, texts):
    """Bring the mean norms of projections and text features to IMAGE_NORM and TEXT_NORM, in place."""
    model.eval()
    images = normalise(photos[:, :, 0].flatten(0, 1)[:512])
    image_factor = IMAGE_NORM / model.visual(images).norm(dim=1).mean()
    last = model.visual.attnpool.c_proj.parameters() if hasattr(model.visual, "attnpool") else [model.visual.proj]
    for parameter in last:
        parameter *= image_factor
    model.text_projection *= TEXT_NORM / model.encode_text(texts.flatten(0, 2)[:512]).norm(dim=1).mean()


def openai_state(model, used):
    """Return the state dict with OpenAI's keys in fp16 and its whole token table; unseen tokens get random rows.

    Args: used: sorted token ids of the captions.
    """
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    table = torch.randn(VOCABULARY, TEXT_WIDTH, generator=torch.Generator().manual_seed(SEED)) * 0.02
    if hasattr(model.visual, "grid_size"):      # the format's grid is square; resized to these columns it is this one
        name, (rows, columns) = "visual.positional_embedding", model.visual.grid_size
        grid = state[name][1:].view(rows, columns, -1).repeat_interleave(rows // columns, dim=1)
        state[name] = torch.cat([state[name][:1], grid.flatten(0, 1)])
    table[used] = model.token_embedding.weight.detach()
    state["token_embedding.weight"] = table.half()
    return {k: v.contiguous() for k, v in state.items()}


def main():
    """Train and save as the command line says."""
    options = parse_arguments()
    people = draw_people(np.random.default_rng([STREAM, SEED, 0]), PEOPLE)
    photos = draw_photos(people)
    state = (trained_agw(people, photos, options.steps) if options.kind == "agw" else
             trained_clip(options.kind, people, photos, options.steps))
    output = options.output or ROOT / "assets" / FILES[options.kind]
    torch.save(state, output)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    exit_on_user_error(main)
