"""Starts this project's commands from a script that has imported parts of its own (docs/extending.md)."""
import sys
from importlib import import_module

from utils.errors import UserError, exit_on_user_error

COMMANDS = {**{name: name for name in ("train_prepare", "train_clip", "test")},
            **{name: f"tools.{name}" for name in ("experiments", "bounds", "search", "export_released")}}


def run():
    """Run the command that the script's first word names, with the words behind it, as a script of that name would."""
    exit_on_user_error(_run)


def _run():
    script, *words = sys.argv
    if not words or words[0] not in COMMANDS:
        raise UserError(f"{script} is to run {words[0] if words else 'nothing'}; expected {', '.join(COMMANDS)} as its "
                        "first word, then that command's own")
    through = ["--through", script] if words[0] == "experiments" else []       # its runs need the same parts
    sys.argv = [script, *through, *words[1:]]
    import_module(COMMANDS[words[0]]).main()
