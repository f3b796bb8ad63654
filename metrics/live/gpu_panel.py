"""The dashboard's panel of GPUs: a line per GPU, or per node if there are too many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from ddpm.run.format import DASH, count, duration, number, shown
from metrics.health.thresholds import Thresholds
from metrics.live.panels import BLOCKS, bar, line, panel
from metrics.run_data import RunData

Gpu = tuple[str, dict[str, Any]]  # the node's name, and the figures that it gives
LIMITS = Thresholds()  # the panel marks what the health check warns of
NODE_WIDTH = 28  # columns that a node needs, where several share a row
NAME_WIDTH = 18


def gpus_of(run: RunData) -> list[Gpu]:
    """Every GPU of the job."""
    return [gpu for node in run.nodes for gpu in _of_node(node)]


def gpu_rows(run: RunData, room: int) -> int:
    """The rows that the panel needs, at most `room`."""
    each = len(_entries(run))
    return max(1, min(room, each if each <= room or len(run.nodes) < 2 else len(run.nodes)))


def gpu_panel(run: RunData, width: int, rows: int) -> Panel:
    """A line per GPU, or per node, or several nodes in a line; the last line sums up those that do not fit."""
    gpus, entries = gpus_of(run), _entries(run)
    if not gpus:
        return panel(Text("no GPU" if run.nodes else "nothing published yet", style="bright_black italic"), "GPUs")
    subtitle = _subtitle(run, gpus)
    if len(entries) <= rows:
        return panel(Group(*_gpu_lines(run, entries, width - 4)), "GPUs", subtitle)
    if len(run.nodes) > 1:
        return panel(Group(*_node_lines(run, width - 4, rows)), "GPUs", subtitle)
    listed, others = gpus[: rows - 1], gpus[rows - 1 :]
    lines = _gpu_lines(run, [(run.nodes[0], gpu) for _, gpu in listed], width - 4)
    return panel(Group(*lines, gpu_summary(others, f"… {len(others)} more:", width - 4)), "GPUs", subtitle)


def gpu_summary(gpus: Sequence[Gpu], title: str, width: int) -> Text:
    """Several GPUs in a line: mean utilisation, highest temperature, and the least used GPU if it is below the limit;
    where they fit also the memory of the fullest and the power of all."""
    use, heat, memory, watts = _summary_figures(gpus)
    busy = [(value, f"{node}:{_index(gpu)}") for node, gpu in gpus if (value := _use(gpu)) is not None]
    least, where = min(busy, default=(LIMITS.utilization, ""))
    text = f"{title}  {use}  {_celsius(heat)}"
    for part in ([f"least {_percent(least)} on {where}"] if least < LIMITS.utilization else []) + [memory, watts]:
        text += f"  {part}" if len(text) + 2 + len(part) <= width else ""
    return line(text)


def _entries(run: RunData) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Every (node, GPU); of several nodes one without GPUs is an entry with None."""
    none = [None] if len(run.nodes) > 1 else []
    return [(node, gpu) for node in run.nodes for gpu in (node.get("gpus") or none)]


def _of_node(node: dict[str, Any]) -> list[Gpu]:
    return [(str(node.get("node")), gpu) for gpu in node.get("gpus") or []]


def _gpu_lines(run: RunData, entries: Sequence[tuple], width: int) -> list[Text]:
    several = len(run.nodes) > 1

    def name_of(node: dict[str, Any], gpu: dict[str, Any] | None) -> str:
        if gpu is None:
            return _name(node)
        return f"{_name(node)}:{_index(gpu)}" if several else f"{_index(gpu)} {_model(gpu)}"

    names = [name_of(node, gpu) for node, gpu in entries]
    name_width = min(NAME_WIDTH, max(map(len, names), default=0))
    lines = []
    for name, (node, gpu) in zip(names, entries, strict=True):
        head = (f"{name[:NAME_WIDTH]:<{name_width}} ", "bold")
        absent = _absent(run, node)
        lines.append(line(head, absent) if absent else _gpu_line(head, gpu or {}, width - name_width - 1))
    return lines


def _gpu_line(head: tuple[str, str], gpu: dict[str, Any], width: int) -> Text:
    heat, watts, limit = (number(gpu.get(key)) for key in ("temperature_c", "power_w", "power_limit_w"))
    figures = [
        (f" {_percent(_use(gpu)):>5} ", ""),
        (f"{_celsius(heat):>5} ", _heat(heat)),
        (f"{_gigabytes(gpu):>13} ", ""),
        (f"{count(watts):>5}", ""),
        (f"/{count(limit)} W" if limit is not None else " W", "bright_black"),
    ]
    room = width - sum(len(text) for text, _ in figures)
    return line(head, bar((_use(gpu) or 0) / 100, room, "green"), *figures)


def _node_lines(run: RunData, width: int, rows: int) -> list[Text]:
    """The nodes, in as many columns as they need and the width allows; the last line sums up those that do not fit."""
    nodes = run.nodes
    columns = 1 if len(nodes) <= rows else max(1, min(-(-len(nodes) // rows), width // NODE_WIDTH))
    listed = nodes if len(nodes) <= rows * columns else nodes[: (rows - 1) * columns]
    cells = [_node_cell(run, node, width // columns) for node in listed]
    lines = [line(*cells[first : first + columns]) for first in range(0, len(cells), columns)]
    if others := nodes[len(listed) :]:
        gpus = [gpu for node in others if not _absent(run, node) for gpu in _of_node(node)]
        what = f"… {len(others)} more nodes" if listed else f"{len(others)} nodes"
        silent = sum(_absent(run, node) is not None for node in others)
        what += f", {silent} of them without figures" if silent else ""
        lines.append(gpu_summary(gpus, f"{what}:", width) if gpus else line(what))
    return lines


def _node_cell(run: RunData, node: dict[str, Any], width: int) -> Text:
    """`vn1 ▇▇▇▇▁▇▇▇   86%  72°C`, a block per GPU, with memory and power where they fit; `width` columns."""
    gpus = _of_node(node)
    longest = max(len(_name(other)) for other in run.nodes)
    name_width = min(longest, NAME_WIDTH, max(4, width - 16 - min(8, len(gpus))))
    name = _name(node) if len(_name(node)) <= name_width else f"…{_name(node)[1 - name_width :]}"
    cell = line((f"{name:<{name_width}} ", "bold"))
    if absent := _absent(run, node):
        cell.append_text(line(absent))
    else:
        blocks = max(1, width - name_width - 16)
        for _, gpu in gpus if len(gpus) <= blocks else gpus[: blocks - 1]:
            use = _use(gpu)
            block = BLOCKS[round(min(100.0, max(0.0, use or 0.0)) / 100 * (len(BLOCKS) - 1))]
            idle = use is not None and use < LIMITS.utilization
            cell.append(block, style="bold red" if idle else "bright_black" if use is None else "green")
        cell.append("…" if len(gpus) > blocks else "")
        use, heat, memory, watts = _summary_figures(gpus)
        cell.append(f" {use:>5} ").append(f"{_celsius(heat):>5} ", style=_heat(heat))
        for figure in (f"{memory:>13} ", f"{watts:>9} "):
            if cell.cell_len + len(figure) <= width - 1:
                cell.append(figure)
    cell.truncate(width, pad=True)
    return cell


def _summary_figures(gpus: Sequence[Gpu]) -> tuple[str, float | None, str, str]:
    """Of several GPUs: mean utilisation, the highest temperature, the memory of the fullest, the power of all."""

    def values(name: str) -> list[float]:
        return [value for _, gpu in gpus if (value := number(gpu.get(name))) is not None]

    use, heat, watts = values("utilization"), values("temperature_c"), values("power_w")
    fullest = max((gpu for _, gpu in gpus), key=lambda gpu: number(gpu.get("memory_used_mb")) or 0.0)
    return (
        _percent(sum(use) / len(use) if use else None),
        max(heat, default=None),
        _gigabytes(fullest),
        shown(sum(watts) if watts else None, ",.0f", " W"),
    )


def _subtitle(run: RunData, gpus: Sequence[Gpu]) -> str | None:
    """`64 x L40S on 8 nodes`, or on 7 of 8 nodes if one has published nothing yet; None for a few GPUs of one node."""
    nodes, expected = len(run.nodes), number(run.status.get("nodes")) or 0
    if max(nodes, expected) < 2 and len(gpus) < 5:
        return None
    models = ", ".join(sorted({_model(gpu) for _, gpu in gpus}))
    of = f" of {expected:.0f}" if expected > nodes else ""
    return f"{len(gpus)} x {models}" + (f" on {nodes}{of} nodes" if max(nodes, expected) > 1 else "")


def _absent(run: RunData, node: dict[str, Any]) -> tuple[str, str] | None:
    """Why a node has no figures, with a style; None if it has them."""
    age = run.job_now - (number(node.get("time")) or run.job_now)
    if age > LIMITS.gpu_silent_sec and not run.ended:
        return f"silent for {duration(age)}", "yellow"
    return None if node.get("gpus") else (str(node.get("note") or "no GPU"), "bright_black")


def _name(node: dict[str, Any]) -> str:
    return str(node.get("node"))


def _index(gpu: dict[str, Any]) -> str:
    return count(gpu.get("index"))


def _model(gpu: dict[str, Any]) -> str:
    return str(gpu.get("name") or DASH).removeprefix("NVIDIA ")


def _use(gpu: dict[str, Any]) -> float | None:
    return number(gpu.get("utilization"))


def _percent(value: float | None) -> str:
    return shown(value, ".0f", "%")


def _celsius(value: float | None) -> str:
    return shown(value, ".0f", "°C")


def _heat(value: float | None) -> str:
    """The style of a temperature."""
    if value is None:
        return "default"
    hot, too_hot = LIMITS.temperature_warning_c, LIMITS.temperature_unhealthy_c
    return "red" if value >= too_hot else "yellow" if value >= hot else "green"


def _gigabytes(gpu: dict[str, Any]) -> str:
    used, total = (number(gpu.get(f"memory_{name}_mb")) for name in ("used", "total"))
    return f"{shown(used and used / 1024, ',.1f')}/{count(total and total / 1024)} GB"
