"""What is chosen for a device, and what is known of it."""

import platform
import resource
import subprocess
import sys
import textwrap

import pytest
import torch

from ddpm.run.config import preset
from ddpm.training.machine import hardware
from ddpm.training.machine.hardware import choose, flop_utilisation, peak_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_takes_bf16_only_where_it_has_it(has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose(preset("tiny"), 47, CPU, 1e8).precision == precision


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_bf16_else_fp16(has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    choices = choose(preset("large"), 47, torch.device("cuda"), 254.7e9)
    assert (choices.precision, choices.channels_last) == (precision, True)
    assert (choices.val_images, choices.samples_per_class) == (2000, 8)


def page_faults(prepare: str) -> int:
    """Of a process that uses 64 MB ten times over, after it has some times: at first the heap may still grow a bit.
    (glibc takes blocks of up to 32 MB from its heap anyway, once it has learned their size.)"""
    script = f"""
        import resource, torch
        from ddpm.training.machine.hardware import set_up
        {prepare}
        use = lambda: torch.ones(2**24)
        for _ in range(20):
            use()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            use()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    return int(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_on_a_cpu_memory_is_taken_from_the_system_only_once():
    each_time = 10 * 64 * 2**20 / resource.getpagesize()
    assert page_faults("") > 0.5 * each_time
    assert page_faults("set_up(torch.device('cpu'), deterministic=False)") < 0.01 * each_time


def test_what_is_asked_for_is_taken_as_it_is():
    asked = preset("tiny", precision="fp32", compile=True, channels_last=True)
    choices = choose(asked, 47, CPU, 1e8)
    assert (choices.precision, choices.compile, choices.channels_last) == ("fp32", True, True)
    assert choices.in_words()["compile"] == "True (set by flag or preset)"


def test_a_cpu_evaluates_only_for_what_needs_it():
    def every(**settings) -> int:
        return choose(preset("tiny", **settings), 47, CPU, 1e8).eval_every

    assert every() == every(early_stop_metric="rca") == every(early_stop_patience=2) == 0
    assert every(best_by="rca") == every(early_stop_patience=10, early_stop_metric="fid_features") == 10


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of it
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A10G", None),
        ("A card of tomorrow", None),
    ],
)
def test_mfu_is_of_the_cards_peak_and_an_unknown_card_has_none(name: str, tflops, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda")
    assert peak_flops(device) == (tflops and tflops * 1e12)
    expected = tflops and pytest.approx(254.7e9 * 647.2 / (tflops * 1e12 * 4))
    assert flop_utilisation(254.7e9, 647.2, device, devices=4) == expected
    assert flop_utilisation(1e9, 100, CPU, devices=1) is None


def test_processes_on_different_cpus_compute_in_the_same_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose(preset("tiny"), 47, CPU, 1e8, lambda mine: [mine, mine]).precision == "bf16"
    mixed = choose(preset("tiny"), 47, CPU, 1e8, lambda mine: [mine, "fp32"] if mine == "bf16" else [mine])
    assert (mixed.precision, mixed.reasons["precision"]) == ("fp32", "not every process's CPU has bf16 arithmetic")


def test_memory_of_a_cpu_is_unknown_not_zero():
    assert all(figure != figure for figure in hardware.memory_mb(CPU))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reports_its_memory_and_uuid():
    device = torch.device("cuda", 0)
    held = torch.zeros(2**20, device=device)
    allocated, reserved, peak = hardware.memory_mb(device)
    assert 4 <= allocated <= reserved and allocated <= peak and held.is_cuda
    assert len(hardware.gpu_uuid(device)) >= 32
