"""Mistakes of the user: one sentence that says what was found, what was expected and what to do."""
import sys


class UserError(Exception):
    """Bad input; its message is all that the user sees, with exit code 2."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state. `exit_code` is 128 + the signal's number."""

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def exit_on_user_error(main):
    """Run `main()`; a UserError becomes its sentence on stderr and exit code 2, Stopped a clear last line."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
