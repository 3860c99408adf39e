"""Convert a checkpoint of train_prepare.py or train_clip.py to the released format, or to safetensors to publish.

    python tools/export_released.py CHECKPOINT OUT.pth [--clip_weights openai|FILE]
    python tools/export_released.py CHECKPOINT FOLDER --safetensors [--licence other] [--title TITLE]

--safetensors writes FOLDER/model.safetensors, the image side with its description as metadata, and FOLDER/README.md, a
model card; `hf upload OWNER/NAME FOLDER` publishes both, and --resume_path hf://OWNER/NAME reads them.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, existing, exit_on_user_error, quoted  # noqa: E402

DESCRIPTION = ("format", "stage", "epoch", "selected", "config", "dataset", "trial", "manifest", "metrics")


def main(arguments=None):
    """Convert the checkpoint that the command line names."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="written by train_prepare.py or train_clip.py")
    parser.add_argument("out", help="the file to write; with --safetensors the folder")
    parser.add_argument("--clip_weights", help="openai or a file; those of the training run if left out")
    parser.add_argument("--safetensors", action="store_true", help="write safetensors and a model card")
    parser.add_argument("--licence", default="other", help="of the weights, as the Hub names it; default: other")
    parser.add_argument("--title", default="", help="of the model card; default: CCLNet on the data set")
    options = parser.parse_args(arguments)
    if not options.checkpoint.startswith("hf://"):
        existing("file", "a checkpoint of train_prepare.py or train_clip.py")(options.checkpoint)
    from configs.checkpoint import settings_of  # slow: after the words were read
    from configs.defaults import load_config
    from model.released import model_from_checkpoint, released_state, to_released
    from processor.run.checkpoints import read_checkpoint
    from utils.checkpoint import save_checkpoint
    from utils.runtime import print_line

    content = read_checkpoint(options.checkpoint)
    model = model_from_checkpoint(content, options.checkpoint)
    if options.safetensors:
        publish(content, model, options)
        return
    if released_state(content) is not None:
        raise UserError(f"checkpoint {quoted(options.checkpoint)} is in the released format already; copy the "
                        "file instead")
    config = load_config(base=settings_of(content))
    check_nothing_there(options.out)
    released = to_released(content, model, options.clip_weights or config.MODEL.CLIP_WEIGHTS, config.MODEL.NAME)
    save_checkpoint(options.out, released)
    print_line(f"{options.out}: {len(released['state_dict'])} weights in the released format")


def check_nothing_there(path):
    """Raise UserError where a file would be replaced."""
    if os.path.lexists(path):
        raise UserError(f"{quoted(path)} is there already, and is not replaced; move it away, or name another place")


def publish(content, model, options):
    """Write safetensors and a model card of a checkpoint's content. Raises UserError: one of them is there."""
    from model.published import FILE_NAME, as_safetensors, model_card
    from model.released import released_state
    from utils.checkpoint import write_atomically
    from utils.runtime import print_line

    folder = Path(options.out)
    for path in (folder / FILE_NAME, folder / "README.md", *([] if folder.is_dir() else [folder])):
        check_nothing_there(path)
    told = {key: content[key] for key in DESCRIPTION if key in content} if released_state(content) is None else {}
    description = {**without_own_paths(told), "model": model.describe()}
    for name, data in ((FILE_NAME, as_safetensors({**description, "state_dict": model.state_dict()})),
                       ("README.md", model_card(options.title, description, options.licence).encode())):
        write_atomically(folder / name, lambda file, data=data: file.write(data))
    print_line(f"{folder / FILE_NAME}: {len(model.state_dict())} weights; {folder / 'README.md'}: the model card")


def without_own_paths(tree):
    """Leave out absolute paths, which say nothing on another machine, and sections that hold nothing else."""
    kept = {key: without_own_paths(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items()
            if not (value == {} and tree[key] or isinstance(value, str) and os.path.isabs(value))}


if __name__ == "__main__":
    exit_on_user_error(main)
