"""Convert a checkpoint of train_prepare.py or train_clip.py to the released format.

    python tools/export_released.py CHECKPOINT OUT.pth [--clip_weights openai|FILE]
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from configs.defaults import load_config  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error, quoted  # noqa: E402


def main(arguments=None):
    """Convert the checkpoint that the command line names."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="written by train_prepare.py or train_clip.py")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--clip_weights", help="openai or a file; those of the training run if left out")
    options = parser.parse_args(arguments)
    from model.clip import load_clip  # slow: after the words were read
    from model.released import model_from_checkpoint, released_state, to_released
    from processor.saved import read_checkpoint
    from utils.checkpoint import save_checkpoint
    from utils.structure import understood

    content = read_checkpoint(options.checkpoint)
    if released_state(content) is not None:
        raise UserError(f"checkpoint {quoted(options.checkpoint)} is in the released format already; copy the "
                        "file instead")
    config = content.get("config")
    if not isinstance(content.get("state_dict"), dict) or not isinstance(config, dict):
        raise UserError(f"checkpoint {quoted(options.checkpoint)} holds no weights with their configuration; expected "
                        "a file written by train_prepare.py or train_clip.py")
    if Path(options.out).resolve() == Path(options.checkpoint).resolve():
        raise UserError(f"{quoted(options.out)} is the checkpoint itself; name another file to write")
    config = load_config(base=config)
    clip = load_clip(options.clip_weights or config.MODEL.CLIP_WEIGHTS)
    model_from_checkpoint(content, options.checkpoint, config.INPUT.HEIGHT, config.INPUT.WIDTH)
    with understood(f"checkpoint {quoted(options.checkpoint)}", "Train it again, or name its CLIP with --clip_weights"):
        released = to_released(content, clip, config.INPUT.HEIGHT, config.INPUT.WIDTH)
    save_checkpoint(options.out, released)
    print(f"{options.out}: {len(released['state_dict'])} weights in the released format")


if __name__ == "__main__":
    exit_on_user_error(main)
