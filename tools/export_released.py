"""Convert a checkpoint of train_prepare.py or train_clip.py to the released format, or to safetensors to publish.

    python tools/export_released.py CHECKPOINT OUT.pth [--clip_weights openai|FILE]
    python tools/export_released.py CHECKPOINT FOLDER --safetensors [--picture] [--licence other] [--title TITLE]
                                    [--repository ADDRESS]

--safetensors writes FOLDER/model.safetensors, the image side with its description as metadata, and FOLDER/README.md, a
model card with the results of every test.py of the checkpoint; `hf upload OWNER/NAME FOLDER` publishes both, and
--resume_path hf://OWNER/NAME reads them. --picture adds ranked lists of such a test, with images of its data set.
"""
import io
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, existing, exit_on_user_error, quoted  # noqa: E402

DESCRIPTION = ("format", "stage", "epoch", "selected", "config", "dataset", "trial", "manifest", "metrics")
PICTURE = "ranked_lists.png"


def main(arguments=None):
    """Convert the checkpoint that the command line names."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="written by train_prepare.py or train_clip.py")
    parser.add_argument("out", help="the file to write; with --safetensors the folder")
    parser.add_argument("--clip_weights", help="openai or a file; those of the training run if left out")
    parser.add_argument("--safetensors", action="store_true", help="write safetensors and a model card")
    parser.add_argument("--licence", default="other", help="of the weights, as the Hub names it; default: other")
    parser.add_argument("--picture", action="store_true", help="add ranked lists: only where their images may be shown")
    parser.add_argument("--title", default="", help="of the model card; default: the method and the data set")
    parser.add_argument("--repository", default="", help="address of the code, for the model card")
    options = parser.parse_args(arguments)
    if not options.checkpoint.startswith("hf://"):
        existing("file", "a checkpoint of train_prepare.py or train_clip.py")(options.checkpoint)
    from configs.checkpoint import read_checkpoint, settings_of  # slow: after the words were read
    from configs.defaults import load_config
    from model.released import model_from_checkpoint, released_state, to_released
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
    """Write safetensors and a model card of a checkpoint's content.

    Raises: UserError: one of them is there, or there is no test whose ranked lists are wanted.
    """
    from model.published import FILE_NAME, as_safetensors
    from model.released import released_state
    from report.lists import pictures_of
    from tools.lib.model_card import model_card
    from utils.checkpoint import write_atomically
    from utils.runtime import print_line

    folder, tests = Path(options.out), tests_of(options.checkpoint)
    lists = next((path for _, path in tests if path.is_file()), None) if options.picture else None
    for path in [folder / name for name in (FILE_NAME, PICTURE, "README.md")] if folder.is_dir() else [folder]:
        check_nothing_there(path)
    if options.picture and lists is None:
        raise UserError(f"--picture shows ranked lists of a test, and {quoted(options.checkpoint)} has none; run "
                        "test.py --resume_path with it first")
    told = {key: content[key] for key in DESCRIPTION if key in content} if released_state(content) is None else {}
    described = {**told, "model": model.describe()}
    records = [record for record, _ in tests] or [told[key] for key in told if key == "metrics"]
    card = model_card(described, records, options.licence, options.title, options.repository, PICTURE if lists else "")
    files = {FILE_NAME: as_safetensors({**without_own_paths(described), "state_dict": model.state_dict()}),
             "README.md": card.encode()}
    if lists:
        buffer = io.BytesIO()
        pictures_of(json.loads(lists.read_text()))["test_ranked_lists"].save(buffer, "PNG")
        files[PICTURE] = buffer.getvalue()
    for name, data in files.items():
        write_atomically(folder / name, lambda file, data=data: file.write(data))
    print_line(f"{folder / FILE_NAME}: {len(model.state_dict())} weights; {folder / 'README.md'}: the model card")


def tests_of(path):
    """List the tests of a checkpoint that lie beside it: [(record of metrics.json, path of what its page shows)]."""
    from report.run_files import CONTENT_FOLDER, read_run

    folder = Path(path).parent
    return [(test.record, test.path / CONTENT_FOLDER / "test.json")
            for test in (read_run(folder).tests if folder.is_dir() else ())
            if test.of == Path(path).stem and not test.differs]


def without_own_paths(tree):
    """Leave out absolute paths, which say nothing on another machine, and sections that hold nothing else."""
    kept = {key: without_own_paths(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items()
            if not (value == {} and tree[key] or isinstance(value, str) and os.path.isabs(value))}


if __name__ == "__main__":
    exit_on_user_error(main)
