"""Mistakes of the user: one sentence that says what was found, what was expected and what to do."""
import argparse
import errno
import os
import sys

# What the machine may refuse at any moment; any other OSError would be a defect and keeps its traceback.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)


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


class Stopped(Exception):
    """The run was asked to stop and has saved its state. `exit_code` is 128 + the signal's number."""

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `UserError`s; its description keeps its line breaks."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)

    def error(self, message):
        """Raises UserError."""
        raise UserError(f"the command line is not understood: {message}; {self.prog} --help lists what it may hold")


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
            found = " ".join(str(error).split())[:160] or "no further memory was given"
            _exit(f"error: memory is exhausted ({found}); lower SAMPLER.INSTANCES or TEST.BATCH_SIZE, use smaller "
                  "images, or free memory", 2)
        if is_lost_process(error):
            from utils.watch import GONE
            _exit(GONE, 2)
        if not isinstance(error, OSError) or error.errno not in REFUSALS:
            raise
        _exit(f"error: {error.filename or 'a file'} cannot be read or written ({error.strerror}); free space or change "
              "its permissions, and run the same command again", 2)


def _exit(last_line, code):
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        from utils.watch import end_together  # slow: torch
        end_together(str(last_line))
        sys.stdout.flush()
        os._exit(code)      # an orderly end would wait for operations that others have left
    print(last_line, file=sys.stderr)
    sys.exit(code)
