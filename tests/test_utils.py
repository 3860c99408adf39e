"""How scripts end, running means."""
import contextlib
import signal

import pytest
import torch

from utils.errors import exit_on_user_error, stops_on_signals
from utils.finite import NonFinite, RunningMeans
from utils.runtime import unused_gpu_warning


def ends(main):
    """The exit code of a script."""
    with pytest.raises(SystemExit) as end:
        exit_on_user_error(main)
    return end.value.code


@pytest.mark.parametrize("error, expected", [
    (MemoryError(), True), (RuntimeError("could not create a primitive"), True),
    (torch.OutOfMemoryError("CUDA out of memory."), True), (RuntimeError("size mismatch"), False)])
def test_out_of_memory_in_any_form(error, expected, capsys):
    def main():
        raise error

    if expected:
        assert ends(main) == 2
        assert capsys.readouterr().err.startswith("error: memory is exhausted (")
    else:
        with pytest.raises(type(error)):
            exit_on_user_error(main)


def test_a_signal_is_not_swallowed_and_a_second_one_does_not_disturb_the_cleaning_up(capsys):
    cleaned, before = [], signal.getsignal(signal.SIGTERM)

    def main():
        with stops_on_signals(lambda: "the same command resumes with epoch 7"):
            try:
                with contextlib.suppress(Exception):
                    signal.raise_signal(signal.SIGUSR1)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned.append(True)

    assert ends(main) == 128 + signal.SIGUSR1 and cleaned
    assert capsys.readouterr().err == "stopped; the same command resumes with epoch 7\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_gpu_that_torch_cannot_use_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unused_gpu_warning(tmp_path) is None
    (tmp_path / "nvidia0").touch()
    assert "cannot use it; update the driver" in unused_gpu_warning(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_gpu_warning(tmp_path) is None


def test_running_means_name_the_first_step_with_a_broken_loss():
    means = RunningMeans()
    for loss, links in ((1.0, 4), (float("inf"), 2), (float("nan"), 6)):
        means.add({"loss_rgb": torch.tensor(loss), "loss_ir": 1.0, "links": links})
    means.add({"loss_ir": 3.0, "similarity": float("nan")})     # a number that is no loss may be NaN
    found = means.means()
    assert found["loss_ir"] == 1.5 and found["links"] == 4.0
    with pytest.raises(NonFinite, match="^loss_rgb is not finite in epoch 3, iteration 2 .images: step 1.;"):
        means.check("epoch 3", lambda step: [f"step {step}"])
