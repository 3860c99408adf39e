"""How scripts end, what a setting may be, running means, copies from a GPU."""
import contextlib
import io
import signal
import sys

import pytest
import torch

from utils.checkpoint import load_plain
from utils.errors import UserError, exit_on_user_error, is_out_of_memory, one_line, quoted, stops_on_signals
from utils.finite import NonFinite, RunningMeans
from utils.runtime import print_line, to_host, unused_gpu_warning
from utils.settings import Range, Setting, check_values


def ends(main):
    """The exit code of a script."""
    with pytest.raises(SystemExit) as end:
        exit_on_user_error(main)
    return end.value.code


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize("error, expected", [
    (MemoryError(), True), (RuntimeError("could not create a primitive"), True),
    (torch.OutOfMemoryError("CUDA out of memory."), True), (OSError(12, "Cannot allocate memory"), True),
    (RuntimeError("size mismatch"), False), (OSError(2, "no such file"), False)])
def test_out_of_memory_in_any_form(error, expected, capsys):
    assert is_out_of_memory(error) == expected
    if expected:
        assert ends(raising(error)) == 2
        assert capsys.readouterr().err.startswith("error: memory is exhausted (")
    else:
        with pytest.raises(type(error)):
            exit_on_user_error(raising(error))


def test_what_a_disk_refuses_is_a_sentence(capsys):
    assert ends(raising(OSError(28, "No space left on device", "a b.pth"))) == 2
    assert capsys.readouterr().err.startswith("error: 'a b.pth' cannot be read or written (No space left on device);")


def test_a_file_is_not_blamed_for_missing_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")))
    with pytest.raises(RuntimeError, match="bad_alloc"):
        load_plain(tmp_path / "whole.pth", "the file", "Copy it again")


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


def test_a_sentence_is_one_line():
    assert one_line("a\nb \udcff c\x1b[1m \u202e é") == r"a\nb \udcff c\x1b[1m \u202e é"
    assert quoted("a/b.yml") == "a/b.yml" and quoted("my run") == "'my run'" and quoted("") == "''"


def test_a_console_without_the_characters_shows_others(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    print_line("loss ≈ 1")
    assert console.buffer.getvalue() == b"loss ? 1\n"


def test_a_gpu_that_torch_cannot_use_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unused_gpu_warning(tmp_path) is None
    (tmp_path / "nvidia0").touch()
    assert "cannot use it; update the driver" in unused_gpu_warning(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_gpu_warning(tmp_path) is None


@pytest.mark.parametrize("allowed, good, bad, sentence", [
    (Range(1, 9, whole=True), (1, 9), (0, 10), "a whole number from 1 to 9"),
    (Range(0, 1000), (0, 0.5, 1000), (-0.1, float("nan")), "a number from 0 to 1,000"),
    (Range(0, 10, above=True), (1e-9, 10), (0, 0.0, 11), "a number above 0, up to 10"),
    (Range(0), (0, 1e9), (-1,), "a number from 0 on"),
    (("exact", "released", ""), ("exact", ""), ("Exact",), "exact or released or ''")])
def test_values_of_settings(allowed, good, bad, sentence):
    for value in (*good, *bad):
        known = {"NAME": Setting("NAME", type(value)(), allowed, "")}
        if value in good:
            check_values("the file", known, {"NAME": value})
        else:
            with pytest.raises(UserError, match=f"the file sets NAME to .*; expected {sentence}, such as "):
                check_values("the file", known, {"NAME": value})


def test_running_means_name_the_first_step_with_a_broken_loss():
    means = RunningMeans()
    for loss, links in ((1.0, 4), (float("inf"), 2), (float("nan"), 6)):
        means.add({"loss_rgb": torch.tensor(loss), "loss_ir": 1.0, "links": links})
    means.add({"loss_ir": 3.0, "similarity": float("nan")})     # a number that is no loss may be NaN
    found = means.means()
    assert found["loss_ir"] == 1.5 and found["links"] == 4.0
    with pytest.raises(NonFinite, match="^loss_rgb is not finite in epoch 3, iteration 2 .images: step 1.;"):
        means.check("epoch 3", lambda step: [f"step {step}"])


def test_a_copy_of_the_host_does_not_follow_later_changes():
    tensor = torch.ones(3, requires_grad=True)
    copy = to_host(tensor)
    tensor.data.zero_()
    assert copy().tolist() == [1, 1, 1]
