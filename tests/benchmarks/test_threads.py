"""What the benchmark of threads says follows from its rounds; its busy processes end. Times are not tested."""

import os
import time

import psutil
import pytest

from benchmarks.threads import ALL_THREADS, BUSY, CHOSEN, IDLE, LATER, ONE_THREAD, busy, figures, main, measure
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from tests.conftest import as_arguments, replace


def test_the_fair_share_is_that_of_one_process_more():
    rates = {
        f"{IDLE}: {CHOSEN}": [400, 420], f"{IDLE}: {ALL_THREADS}": [410, 420], f"{IDLE}: {ONE_THREAD}": [250, 200],
        f"{BUSY}: {CHOSEN}": [90, 80], f"{BUSY}: {ALL_THREADS}": [9, 2], f"{BUSY}: {ONE_THREAD}": [100, 80],
        f"{LATER}: {CHOSEN}": [50, 80],
    }  # fmt: skip
    told = figures(rates, cores=2, others=4)  # 2 of 5: 100 and 80
    assert told[f"{BUSY}: {CHOSEN}"]["of_fair_share"] == pytest.approx({"median": 0.95, "low": 0.9, "high": 1.0})
    assert told[f"{LATER}: {CHOSEN}"]["of_fair_share"]["low"] == pytest.approx(0.5)
    assert told[f"{BUSY}: {CHOSEN}"]["of_all_threads"] == pytest.approx({"median": 25, "low": 10, "high": 40})
    assert told[f"{IDLE}: {CHOSEN}"]["of_all_threads"]["high"] == pytest.approx(1)
    assert "of_fair_share" not in told[f"{IDLE}: {CHOSEN}"]
    assert figures(rates, cores=8, others=4)[f"{BUSY}: {CHOSEN}"]["of_fair_share"]["low"] == pytest.approx(90 / 250)


def test_busy_processes_rest_until_they_are_let_and_end_with_an_error():
    with pytest.raises(KeyboardInterrupt), busy(2) as crowd:
        others = [psutil.Process(each.pid) for each in crowd.processes]
        crowd.let(True)
        time.sleep(0.3)
        crowd.let(False)
        time.sleep(0.1)
        assert {each.status() for each in others} == {psutil.STATUS_STOPPED}
        assert all(each.cpu_times().user > 0 for each in others)
        raise KeyboardInterrupt
    assert not any(each.is_running() for each in others)


def test_a_measurement_is_a_process_that_trains(small: TrainConfig):
    flags, threads = as_arguments(replace(small, val_images=20)), {}
    with busy(1) as crowd:
        assert measure(crowd, BUSY, ONE_THREAD, flags, settle=0, seconds=0.1, threads=threads) > 0
        assert threads == {f"{BUSY}: {ONE_THREAD}": [1]}
        time.sleep(0.1)
        assert psutil.Process(crowd.processes[0].pid).status() == psutil.STATUS_STOPPED
        with pytest.raises(RequestError, match="must be 1 or more"):
            measure(crowd, IDLE, ONE_THREAD, ["--epochs", "0"], settle=0, seconds=0.1, threads=threads)


def test_a_wrong_number_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "tiny", "--busy", "0", "--data-root", os.devnull])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
