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
    return {"command": shlex.join(["python", *sys.orig_argv[1:]]),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "commit": commit(Path(__file__).parent), "versions": versions(), "hardware": hardware(device)}


def versions():
    """What a result may depend on beside data and settings: name -> version."""
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "open_clip_torch")}}


def commit(folder):
    """Return the short hash of a repository's commit, with "+" where files were changed since; "" outside of one."""
    try:
        return subprocess.run(["git", "-C", folder, "describe", "--always", "--exclude=*", "--dirty=+"], text=True,
                              capture_output=True).stdout.strip()
    except OSError:     # there is no git
        return ""


def hardware(device):
    """Name the GPU, or the processor, as Linux tells it, and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"
