"""One table of the benchmarks' files."""

import json
from pathlib import Path

from benchmarks import summary
from benchmarks.common.rounds import ALL


def put(folder: Path, name: str, device: str, **document) -> None:
    whole = {"benchmark": name, "machine": {"device": device}, **document}
    (folder / f"{name}_{device[:3]}.json").write_text(json.dumps(whole))


def step(plain: float, accelerate: float, bare: float, memory: float | None) -> dict:
    figures = {
        name: {"ours_is_faster": {"median": value}, "share_of_matmul": 0.5, "mfu": memory and 0.36,
               "peak_memory_gb": gb}
        for name, value, gb in (
            ("ours", 1.0, memory), ("plain loop", plain, memory and 2 * memory), ("accelerate loop", accelerate, 1.0),
            ("bare model", bare, 1.0), ("ours under DDP", 1.02, memory),
        )
    }  # fmt: skip
    return {"figures": figures}


def test_every_figure_stands_beside_its_target(tmp_path, capsys):
    put(tmp_path, "train_step_small", "CPU (x86_64)", **step(1.3, 1.2, 1 / 1.02, None))
    put(tmp_path, "train_step_small", "NVIDIA H200", **step(2.9, 3.5, 1 / 1.04, 4.0))
    put(tmp_path, "overhead_tiny", "CPU (x86_64)", in_place={ALL: [0.013, 0.012, 0.03]}, shares={ALL: {"median": 0.2}})
    put(tmp_path, "overhead_small", "NVIDIA H200", in_place={}, shares={ALL: {"median": 0.021}})
    (tmp_path / "recipes.json").write_text('{"minutes": 4}')
    rows = {(figure, device[:3]): row for figure, device, *row in summary.rows(summary.read(tmp_path))}
    plain, accelerate = "small: ours / plain loop, images/s", "small: ours / Accelerate loop, images/s"
    assert rows[plain, "CPU"] == ["≥ 1.2×", "1.3×", "reached"]
    assert rows[plain, "NVI"] == ["≥ 3×", "2.9×", "missed"]
    assert rows[accelerate, "CPU"][-1] == "missed"
    assert rows["small: our step / bare model", "CPU"] == ["≤ 1.03×", "1.02×", "reached"]
    assert rows["small: our step / bare model", "NVI"][-1] == "missed"
    assert rows["small: peak memory / plain loop", "NVI"] == ["≤ 0.6×", "0.5×", "reached"]
    assert ("small: peak memory / plain loop", "CPU") not in rows
    assert rows["small: FLOP/s, of a matrix product's", "CPU"] == ["–", "50%", "–"]
    assert rows["small: FLOP/s, of the data sheet's peak (MFU)", "NVI"] == ["≥ 37%", "36%", "missed"]
    assert rows["small: our step under DDP / without, one process", "NVI"] == ["≤ 1.03×", "1.02×", "reached"]
    assert rows["tiny: EMA, norm, figures, dashboard, of a step", "CPU"] == ["≤ 2%", "1.3%", "reached"]
    assert rows["small: EMA, norm, figures, dashboard, of a step", "NVI"] == ["≤ 2%", "2.1%", "missed"]
    assert summary.main(["--folder", str(tmp_path)]) == 0
    assert "missed" in capsys.readouterr().out


def test_the_results_of_the_project_fit_into_the_table(capsys):
    assert summary.main([]) == 0
    assert "NVIDIA H200" in capsys.readouterr().out


def test_without_figures_it_says_what_to_do(tmp_path, capsys):
    assert summary.main(["--folder", str(tmp_path)]) == 2
    assert "run the benchmarks first" in capsys.readouterr().err
