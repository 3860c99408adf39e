"""Where results come from: command, date, commit, versions and hardware, for the page of a run."""
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch

from processor.run.resume import versions


def provenance(device):
    """Describe this process: {"command", "started", "commit", "versions", "hardware"}. Args: device: torch device."""
    return {"command": command(sys.argv), "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "commit": commit(Path(__file__).resolve().parents[2]), "versions": versions(), "hardware": hardware(device)}


def command(words):
    """Write a command line as one would type it, its script relative to the working folder."""
    script = os.path.relpath(words[0]) if words[0] and os.path.isfile(words[0]) else words[0]
    return shlex.join(["python", script, *words[1:]])


def commit(folder):
    """Return the short hash of a repository's commit, with "+" where files were changed since; "" outside of one."""
    def git(*words):
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20,
                              check=True).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def hardware(device):
    """Name the GPU, or the processor and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = os.cpu_count()
    return f"{_processor()}, {torch.get_num_threads()} of {cores} thread{'s' if cores > 1 else ''}"


def _processor():
    """Return the processor's name, as Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
