"""Start one of the project's scripts and wait for it, also when this process is asked to stop."""
import signal
import subprocess


def run_script(command, **options):
    """Run a command and wait for its end; SIGTERM and Ctrl-C are passed on to it once, and it is waited for.

    Args: command: list of words; options: of `subprocess.Popen`.
    Returns: its exit code; 128 + a signal's number where one ended it.
    """
    # A session of its own: Ctrl-C in a terminal would reach it a second time, and a second one stops it at once.
    process = subprocess.Popen(command, start_new_session=True, **options)
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number))
              for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
