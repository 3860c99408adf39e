"""Train the demo's narrow AGW on synthetic people and write it with the names of ImageNet's ResNet-50.

The people are those of the demo's CLIP, none of its data sets. It learns to tell the people of each modality apart by
themselves; nothing tells it that a visible and an infrared image show the same person. One stem sees both modalities.

    OMP_NUM_THREADS=1 python tools/dev/train_demo_agw.py [--steps 1200] [--output FILE]
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error, whole_number  # noqa: E402


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "assets/demo_agw.pth", help="the file to write")
    parser.add_argument("--steps", type=whole_number(1, 1_000_000), default=1200, help="default: 1200")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.demo import draw_people  # noqa: E402
from model.towers.agw import AGWPlain  # noqa: E402
from tools.dev import train_demo_clip as demo  # noqa: E402

CHANNELS, BLOCKS = 8, (1, 1, 1, 1)      # ResNet-50: 64, (3, 4, 6, 3); non-local blocks start as the identity anyway
TEMPERATURE = 0.05


def train(tower, photos, steps):
    """Fit the tower in place: cross entropy among the people of each modality, by the cosines with a row for each."""
    rng = torch.Generator().manual_seed(demo.SEED)
    rows = nn.Parameter(0.02 * torch.randn(2, len(photos), tower.feature_dim, generator=rng))
    optimiser = torch.optim.AdamW([*tower.parameters(), rows], demo.LR, weight_decay=0.02)
    schedule = demo.cosine(optimiser, steps)
    tower.train().to(memory_format=torch.channels_last)
    progress = tqdm(range(steps), "training")
    for step in progress:
        person, _, images, _ = demo.draw_images(photos, rng)
        x = F.normalize(tower.trunk(tower.stem(demo.augment(images, rng), "rgb"))[0], dim=1)
        loss = sum(F.cross_entropy(x[m::2] @ F.normalize(rows[m], dim=1).T / TEMPERATURE, person[m::2])
                   for m in (0, 1)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def imagenet_state(tower):
    """Return the state dict with torchvision's names in fp16; both stems of a tower are loaded from it."""
    return {re.sub(r"^(stems\.rgb|layers)\.", "", name): value.half().contiguous()
            for name, value in tower.state_dict().items()
            if not name.startswith("stems.ir.") and value.is_floating_point()}


def main():
    """Train and save as the command line says."""
    options = parse_arguments()
    photos = demo.draw_photos(draw_people(np.random.default_rng([demo.STREAM, demo.SEED, 0]), demo.PEOPLE))
    with torch.random.fork_rng():
        torch.manual_seed(demo.SEED)
        tower = AGWPlain(CHANNELS, BLOCKS, *demo.IMAGE_SIZE)
    train(tower, photos, options.steps)
    torch.save(imagenet_state(tower), options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    exit_on_user_error(main)
