"""The GPUs of a job as the dashboard shows them: a line each, and where they are too many for that, a line a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from ddpm.run.format import NONE, fixed, number, rough_duration
from metrics.live.panels import BLOCKS, bar, line, panel
from metrics.run_state import CLOCK_SKEW, RunState

Gpu = tuple[str, dict[str, Any]]  # the node's name, and the figures that it gives
SILENT_AFTER = 60.0 + CLOCK_SKEW  # seconds; a node writes every 2
IDLE = 50.0  # % of utilisation below which a GPU stands out
NODE_WIDTH = 28  # columns that a node takes at least, where several stand in a row
NAME_WIDTH = 18


def gpus_of(state: RunState) -> list[Gpu]:
    """Every GPU of the job."""
    return [gpu for node in state.nodes for gpu in _of_node(node)]


def gpu_rows(state: RunState, room: int) -> int:
    """The rows that the panel can make use of, at most `room`."""
    each = len(_entries(state))
    return max(1, min(room, each if each <= room or len(state.nodes) < 2 else len(state.nodes)))


def gpu_panel(state: RunState, width: int, rows: int) -> Panel:
    """A line a GPU; else a line a node, or several in a row; what still finds no room is summed up in the last line."""
    gpus, entries = gpus_of(state), _entries(state)
    if not gpus:
        return panel(Text("no GPU" if state.nodes else "no word of any GPU yet", style="bright_black italic"), "GPUs")
    subtitle = _subtitle(state, gpus)
    if len(entries) <= rows:
        return panel(Group(*_gpu_lines(state, entries, width - 4)), "GPUs", subtitle)
    if len(state.nodes) > 1:
        return panel(Group(*_node_lines(state, width - 4, rows)), "GPUs", subtitle)
    shown, others = gpus[: rows - 1], gpus[rows - 1 :]
    lines = _gpu_lines(state, [(state.nodes[0], gpu) for _, gpu in shown], width - 4)
    return panel(Group(*lines, gpu_summary(others, f"… {len(others)} more:", width - 4)), "GPUs", subtitle)


def gpu_summary(gpus: Sequence[Gpu], title: str, width: int) -> Text:
    """Several GPUs in a line: their mean, the hottest, which one does least if it stands out; the memory of the
    fullest and the power of all, where there is room.
    """
    use, heat, memory, watts = _together(gpus)
    busy = [(value, f"{node}:{gpu.get('index')}") for node, gpu in gpus if (value := _use(gpu)) is not None]
    least, where = min(busy, default=(IDLE, ""))
    text = f"{title}  {use}  {fixed(heat, 0, '°C')}"
    for part in ([f"least {least:.0f} % on {where}"] if least < IDLE else []) + [memory, watts]:
        text += f"  {part}" if len(text) + 2 + len(part) <= width else ""
    return line(text)


def _entries(state: RunState) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Every (node, GPU); a node of several that has none counts as one, with None."""
    none = [None] if len(state.nodes) > 1 else []
    return [(node, gpu) for node in state.nodes for gpu in (node.get("gpus") or none)]


def _of_node(node: dict[str, Any]) -> list[Gpu]:
    return [(str(node.get("node")), gpu) for gpu in node.get("gpus") or []]


def _gpu_lines(state: RunState, entries: Sequence[tuple], width: int) -> list[Text]:
    several = len(state.nodes) > 1

    def name_of(node: dict[str, Any], gpu: dict[str, Any] | None) -> str:
        if gpu is None:
            return _name(node)
        return f"{_name(node)}:{gpu.get('index')}" if several else f"{gpu.get('index')} {_model(gpu)}"

    names = [name_of(node, gpu) for node, gpu in entries]
    name_width = min(NAME_WIDTH, max(map(len, names), default=0))
    lines = []
    for name, (node, gpu) in zip(names, entries, strict=True):
        head = (f"{name[:NAME_WIDTH]:<{name_width}} ", "bold")
        absent = _absent(state, node)
        lines.append(line(head, absent) if absent else _gpu_line(head, gpu or {}, width - name_width - 1))
    return lines


def _gpu_line(head: tuple[str, str], gpu: dict[str, Any], width: int) -> Text:
    heat, watts, limit = (number(gpu.get(key)) for key in ("temperature_c", "power_w", "power_limit_w"))
    figures = [
        (f" {fixed(_use(gpu), 0, ' %'):>5} ", ""),
        (f"{fixed(heat, 0, '°C'):>5} ", _heat(heat)),
        (f"{_gigabytes(gpu):>13} ", ""),
        (f"{fixed(watts):>5}", ""),
        (f"/{fixed(limit)} W" if limit is not None else " W", "bright_black"),
    ]
    room = width - sum(len(text) for text, _ in figures)
    return line(head, bar((_use(gpu) or 0) / 100, room, "green"), *figures)


def _node_lines(state: RunState, width: int, rows: int) -> list[Text]:
    """The nodes, in as many columns as they need and the width allows; the last line sums up those without room."""
    nodes = state.nodes
    columns = 1 if len(nodes) <= rows else max(1, min(-(-len(nodes) // rows), width // NODE_WIDTH))
    shown = nodes if len(nodes) <= rows * columns else nodes[: (rows - 1) * columns]
    cells = [_node_cell(state, node, width // columns) for node in shown]
    lines = [line(*cells[first : first + columns]) for first in range(0, len(cells), columns)]
    if others := nodes[len(shown) :]:
        gpus = [gpu for node in others if not _absent(state, node) for gpu in _of_node(node)]
        what = f"… {len(others)} more nodes" if shown else f"{len(others)} nodes"
        silent = sum(_absent(state, node) is not None for node in others)
        what += f", {silent} of them without figures" if silent else ""
        lines.append(gpu_summary(gpus, f"{what}:", width) if gpus else line(what))
    return lines


def _node_cell(state: RunState, node: dict[str, Any], width: int) -> Text:
    """`vn1 ▇▇▇▇▁▇▇▇   86 %  72°C`, a block a GPU, and memory and power where there is room; `width` columns."""
    gpus = _of_node(node)
    longest = max(len(_name(other)) for other in state.nodes)
    name_width = min(longest, NAME_WIDTH, max(4, width - 16 - min(8, len(gpus))))
    name = _name(node) if len(_name(node)) <= name_width else f"…{_name(node)[1 - name_width :]}"
    cell = line((f"{name:<{name_width}} ", "bold"))
    if absent := _absent(state, node):
        cell.append_text(line(absent))
    else:
        blocks = max(1, width - name_width - 16)
        for _, gpu in gpus if len(gpus) <= blocks else gpus[: blocks - 1]:
            use = _use(gpu)
            block = BLOCKS[round(min(100.0, max(0.0, use or 0.0)) / 100 * (len(BLOCKS) - 1))]
            cell.append(block, style="bright_black" if use is None else "green" if use >= IDLE else "bold red")
        cell.append("…" if len(gpus) > blocks else "")
        use, heat, memory, watts = _together(gpus)
        cell.append(f" {use:>5} ").append(f"{fixed(heat, 0, '°C'):>5} ", style=_heat(heat))
        for figure in (f"{memory:>13} ", f"{watts:>9} "):
            if cell.cell_len + len(figure) <= width - 1:
                cell.append(figure)
    cell.truncate(width, pad=True)
    return cell


def _together(gpus: Sequence[Gpu]) -> tuple[str, float | None, str, str]:
    """Of several GPUs: mean utilisation, the highest temperature, the memory of the fullest, the power of all."""

    def values(name: str) -> list[float]:
        return [value for _, gpu in gpus if (value := number(gpu.get(name))) is not None]

    use, heat, watts = values("utilization"), values("temperature_c"), values("power_w")
    fullest = max((gpu for _, gpu in gpus), key=lambda gpu: number(gpu.get("memory_used_mb")) or 0.0)
    return (
        f"{sum(use) / len(use):.0f} %" if use else NONE,
        max(heat) if heat else None,
        _gigabytes(fullest),
        f"{sum(watts):,.0f} W" if watts else NONE,
    )


def _subtitle(state: RunState, gpus: Sequence[Gpu]) -> str | None:
    """`64 x L40S on 8 nodes`, or on 7 of 8 nodes where one has not spoken yet; nothing for a few of one node."""
    nodes, expected = len(state.nodes), number((state.status or {}).get("nodes")) or 0
    if max(nodes, expected) < 2 and len(gpus) < 5:
        return None
    models = ", ".join(sorted({_model(gpu) for _, gpu in gpus}))
    of = f" of {expected:.0f}" if expected > nodes else ""
    return f"{len(gpus)} x {models}" + (f" on {nodes}{of} nodes" if max(nodes, expected) > 1 else "")


def _absent(state: RunState, node: dict[str, Any]) -> tuple[str, str] | None:
    """Why a node has no figures, with a style; None if it has them."""
    age = state.now - (number(node.get("time")) or state.now)
    if age > SILENT_AFTER and not state.ended:
        return f"silent for {rough_duration(age)}", "yellow"
    return None if node.get("gpus") else (str(node.get("note") or "no GPU"), "bright_black")


def _name(node: dict[str, Any]) -> str:
    return str(node.get("node"))


def _model(gpu: dict[str, Any]) -> str:
    return str(gpu.get("name")).removeprefix("NVIDIA ")


def _use(gpu: dict[str, Any]) -> float | None:
    return number(gpu.get("utilization"))


def _heat(value: float | None) -> str:
    return "default" if value is None else "red" if value >= 85 else "yellow" if value >= 75 else "green"


def _gigabytes(gpu: dict[str, Any]) -> str:
    used, total = (number(gpu.get(f"memory_{name}_mb")) for name in ("used", "total"))
    return f"{fixed(used and used / 1024, 1)}/{fixed(total and total / 1024)} GB"
