"""Where results come from: command, date, commit, versions and hardware, for the page of a run."""
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch


def provenance(device):
    """Describe this process: {"command", "started", "commit", "versions", "hardware"}. Args: device: torch device."""
    return {"command": command(sys.argv), "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "commit": commit(Path(__file__).resolve().parents[2]), "versions": versions(), "hardware": hardware(device)}


def versions():
    """What a result may depend on beside data and settings: name -> version."""
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "open_clip_torch")}}


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
    """Name the GPU, or the processor, as Linux tells it, and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    cores = os.cpu_count()
    return f"{name}, {torch.get_num_threads()} of {cores} thread{'s' if cores > 1 else ''}"
