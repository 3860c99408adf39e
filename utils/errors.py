"""How a script ends: a mistake of the user or a signal becomes one line on stderr and an exit code."""
import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import traceback

# What a user's disk may refuse; any other OSError is a defect and keeps its traceback.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG,
            errno.ENOTDIR, errno.EISDIR, errno.EMFILE)
# Ctrl-C, the end that a scheduler asks for, and the two that Slurm can send before a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# How PyTorch's allocators and oneDNN say that there is no memory; all of them are plain RuntimeErrors.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "std::length_error",
                 "could not create a primitive", "could not create a memory", "could not allocate")


def is_out_of_memory(error):
    """Tell whether an exception says that memory is exhausted, in NumPy's, PyTorch's or oneDNN's words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                              and any(words in str(error) for words in OUT_OF_MEMORY))


class UserError(Exception):
    """Bad input; its message is all that the user sees, with exit code 2."""


def in_brief(error):
    """Return what an exception says, on one line of at most 160 characters."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:160]


@contextlib.contextmanager
def explained(problem, remedy):
    """Turn whatever goes wrong in a block into the UserError "PROBLEM (what the library says); REMEDY".

    For libraries that raise many kinds of errors on damaged files. Exhausted memory is no fault of the file and passes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{problem} ({in_brief(error) or type(error).__name__}); {remedy}")


class Stopped(BaseException):
    """A signal ends the run. No `except Exception` catches it. `exit_code` is 128 + the signal's number."""

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def stops_on_signals(where):
    """Within this context a signal of SIGNALS raises `Stopped` in the main thread at once.

    Further signals are ignored until its end, so that they do not interrupt the cleaning up.

    Args: where: a function that tells how to go on: "the same command resumes with epoch 7 of finetune".
    """
    def stop(number, _frame):
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(f"stopped; {where()}", number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_line(text):
    r"""Write a text on one line of any terminal: what does not print becomes its escape, a line break \n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shown(text):
    """Write a text of several lines for a terminal: `one_line` of each."""
    return "\n".join(map(one_line, str(text).split("\n")))


def quoted(path):
    """Write a path for a sentence: in quotation marks if it holds more than one word, or nothing."""
    text = str(path)
    return text if text and not any(c.isspace() for c in text) else f"'{text}'"


def whole_number(low, high):
    """Make a `type` of argparse: a whole number from low to high."""
    return _number(int, f"whole number from {low:,} to {high:,}", low, high)


def real_number(low, high):
    """Make a `type` of argparse: a number from low to high."""
    return _number(float, f"number from {low:,} to {high:,}", low, high)


def existing(kind, expected):
    """Make a `type` of argparse: the path of a "folder" or "file". A missing one is told before anything is loaded."""
    def parse(path):
        if not (os.path.isdir if kind == "folder" else os.path.isfile)(path):
            raise UserError(f"{quoted(path)} is no {kind}; expected {expected}")
        return path
    return parse


def _number(convert, expected, low, high):
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no {expected}")
        return value
    return parse


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `UserError`s; its description keeps its line breaks."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)

    def error(self, message):
        """Raises UserError."""
        raise UserError(f"the command line is not understood: {message}; {self.prog} --help lists what it may hold")


def exit_on_user_error(main):
    """Run `main()`; a mistake of the user ends in a sentence on stderr and exit code 2, a signal in its line.

    Of several processes each prints its own mistake, and the first alone that a signal ended the run.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    try:
        with stops_on_signals(lambda: "the same command continues from what was saved, if anything was"):
            return main()
    except UserError as error:
        last_line, code = f"error: {error}", 2
    except Stopped as stop:
        last_line, code = "" if int(os.environ.get("RANK", 0)) else str(stop), stop.exit_code
    except Exception as error:
        last_line, code = _refusal(error), 2
        if not last_line:
            if not several:
                raise
            traceback.print_exc()
            code = 1
    if last_line:
        print(one_line(last_line), file=sys.stderr, flush=True)
    if several:
        sys.stdout.flush()
        os._exit(code)      # an orderly end would wait for messages of the others
    sys.exit(code)


def _refusal(error):
    """Return the sentence for an exception that tells of memory or the disk; "" for a defect."""
    if is_out_of_memory(error):
        found = in_brief(error) or "no further memory was given"
        return (f"error: memory is exhausted ({found}); lower TEST.BATCH_SIZE, or SAMPLER.INSTANCES (of a run that has "
                "begun with --fresh), use smaller images, or free memory")
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return (f"error: {quoted(error.filename or 'a file')} cannot be read or written ({error.strerror}); free "
                "space, change its permissions or move what is in the way, and run the same command again")
    return ""
