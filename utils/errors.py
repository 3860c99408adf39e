"""Mistakes of the user: one sentence that says what was found, what was expected and what to do."""
import argparse
import contextlib
import errno
import math
import os
import signal
import sys

# What the machine may refuse at any moment; any other OSError would be a defect and keeps its traceback.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG,
            errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EFBIG,
            errno.EBUSY, errno.ESTALE, errno.ENXIO, errno.ENODEV)
# Ctrl-C, the end that a scheduler asks for, and the two that Slurm can send before a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LONGEST_WORD, LONGEST_SENTENCE = 240, 1000      # characters of a sentence that is printed

# How PyTorch's allocators and oneDNN say that there is no memory; all of them are plain RuntimeErrors.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "std::length_error",
                 "could not create a primitive", "could not create a memory", "could not allocate")


def is_out_of_memory(error):
    """Tell whether an exception says that memory is exhausted, in NumPy's, PyTorch's or oneDNN's words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                              and any(words in str(error) for words in OUT_OF_MEMORY))


def is_lost_process(error):
    """Tell whether an exception says that another process cannot be reached, in torch.distributed's or gloo's words."""
    return isinstance(error, RuntimeError) and (type(error).__name__.startswith("Dist") or "gloo" in str(error)
                                                or "NCCL" in str(error))


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
    """The run was asked to stop and has saved its state. `exit_code` is 128 + the signal's number."""

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def stops_on_signals(where):
    """Within this context a signal of SIGNALS raises `Stopped` in the main thread at once.

    Further signals are ignored from then on, so that they do not interrupt the cleaning up.

    Args: where: a function that says how the work goes on: "the same command resumes with epoch 7 of finetune".
    """
    def stop(number, _frame):
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(f"stopped; {where()}", number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            _restore(before)


def _restore(handlers):
    for number, handler in handlers.items():
        signal.signal(number, handler)


def one_line(text):
    r"""Write a text so that any terminal shows it as one line of moderate length.

    A character that does not print, in a file's name as a rule, becomes its escape: a line break \n, a byte that is no
    UTF-8 \xff. The middle of an endless word or sentence becomes "...".
    """
    text = "".join(c if c.isprintable() else f"\\x{ord(c) - 0xdc00:02x}" if 0xdc80 <= ord(c) <= 0xdcff else
                   c.encode("unicode_escape").decode() for c in str(text))
    words = " ".join(_shortened(word, LONGEST_WORD) for word in text.split(" "))
    return _shortened(words, LONGEST_SENTENCE)


def _shortened(text, longest):
    """Replace the middle of a text that is too long by "..."."""
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


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


def _number(convert, expected, low, high):
    def parse(text):
        try:
            value = convert(text)
        except ValueError:      # also for thousands of digits
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{_shortened(text, 40)!r} is no {expected}")
        return value
    return parse


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `UserError`s; its description keeps its line breaks.

    Options may be written with - or _ between their words.
    """

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        """Parse as argparse does. Raises: UserError: a word holds bytes that are no UTF-8."""
        words = [self._known_spelling(word) for word in (sys.argv[1:] if args is None else args)]
        for word in words:
            if not is_unicode(word):
                raise UserError(f"the command line holds {quoted(word)}, in which bytes are no UTF-8; expected names "
                                "in UTF-8. Rename the file or folder")
        return super().parse_known_args(words, namespace)

    def _known_spelling(self, word):
        """Translate --one-flag=value to the spelling of the flag that is known, --one_flag=value."""
        flag, equals, value = word.partition("=")
        known = {option.replace("-", "_"): option for option in reversed(self._option_string_actions)}
        if not flag.startswith("--") or flag in self._option_string_actions:
            return word
        return known.get(flag.replace("-", "_"), flag) + equals + value

    def error(self, message):
        """Raises UserError."""
        raise UserError(f"the command line is not understood: {message}; {self.prog} --help lists what it may hold")


def is_unicode(text):
    """Tell whether a text can be written as UTF-8: names of files whose bytes are none cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exit_on_user_error(main):
    """Run `main()`; a UserError becomes its sentence on stderr and exit code 2, Stopped a clear last line."""
    try:
        main()
    except UserError as error:
        _exit(f"error: {error}", 2)
    except Stopped as stop:
        _exit(stop, stop.exit_code)
    except KeyboardInterrupt:
        _exit("stopped at once; the same command resumes from the last state that was saved, if there is one", 130)
    except Exception as error:
        if is_out_of_memory(error):
            found = in_brief(error) or "no further memory was given"
            _exit(f"error: memory is exhausted ({found}); lower TEST.BATCH_SIZE, or SAMPLER.INSTANCES (of a run that "
                  "has begun with --fresh), use smaller images, or free memory", 2)
        if is_lost_process(error):
            from utils.watch import GONE
            _exit(GONE, 2)
        if not isinstance(error, OSError) or error.errno not in REFUSALS:
            raise
        _exit(f"error: {quoted(error.filename or 'a file')} cannot be read or written ({error.strerror}); free space, "
              "change its permissions or move what is in the way, and run the same command again", 2)


def _exit(last_line, code):
    last_line = one_line(last_line)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        from utils.watch import end_together  # slow: torch
        end_together(last_line)
        sys.stdout.flush()
        os._exit(code)      # an orderly end would wait for operations that others have left
    with contextlib.suppress(OSError, ValueError, AttributeError):      # a stderr that is closed or missing
        print(last_line, file=sys.stderr)
    sys.exit(code)
