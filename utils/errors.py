"""Mistakes of the user: one sentence that says what was found, what was expected and what to do."""
import sys


class UserError(Exception):
    """Bad input; its message is all that the user sees, with exit code 2."""


def exit_on_user_error(main):
    """Run `main()` and turn a UserError into its sentence on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
