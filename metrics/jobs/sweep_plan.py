"""The plan of a sweep, a YAML (or JSON) file that lists runs and their flags of train.py.

    name: rates               # the runs are called rates-<run>
    problem: which rate is best?
    base:                     # settings of all runs, with - or _
      preset: tiny
      epochs: 3
    runs:                     # changes of each run ...
      slow: {lr: 0.001}
      fast: {lr: 0.003, warmup-steps: 200, why: it may be too slow, expect: a lower loss}
    grid:                     # ... and/or every combination of these values
      weight-decay: [0.0, 0.01]
    seeds: [0, 1]             # each of them with every seed
    rank_by: val_loss_ema     # as --rank-by of metrics.compare
    criteria:                 # of every run, as --criterion of train.py, each with a name if you like
      - val_loss_ema <= 0.13
      - steady: no new worst of val_loss_ema in epochs 2-3
    stop_when: missed         # end a run that can no longer meet one
    notes: [a remark]         # for the pages of every run

This makes eight runs, such as `rates-slow-weight_decay=0.0-seed=0`. null stands for a setting's default.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ddpm.run.arguments import parse_args, read_yaml, to_arguments, with_known_names
from ddpm.run.config import NO_RECIPE, TrainConfig, preset
from ddpm.run.criteria import criteria_texts, parse_criteria
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, real
from ddpm.run.paths import RunPaths
from metrics.compare.figures import parse_rank_by, setting_words
from metrics.criteria.of_run import Purpose
from metrics.files import read_json, read_status
from metrics.jobs.finished import ENDS, SAID, trained_otherwise

PARTS = {
    "name": str, "problem": str, "base": dict, "runs": dict, "grid": dict, "seeds": list, "rank_by": str,
    "criteria": list, "stop_when": str, "notes": list,
}  # fmt: skip
NOT_HERE = {  # setting: why a plan cannot hold it
    "run_name": "the runs' names are made from the plan's",
    "dry_run": "give --dry-run to metrics.sweep",
    "find_batch_size": "it trains nothing",
    "resume": "a run that was begun is always continued",
    "criteria": "those of all runs stand beside base:, those of one run under criterion:",
}
OF_ALL = ("output_root",)  # may stand in `base` only
IN_WORDS = ("problem", "why", "expect")


@dataclass(frozen=True)
class PlannedRun:
    """A run: the arguments for train.py, and the settings that they give."""

    arguments: tuple[str, ...]
    config: TrainConfig
    changes: str = ""
    """The settings that it changes in the base, in words."""

    @property
    def name(self) -> str:
        return self.config.run

    @property
    def paths(self) -> RunPaths:
        return RunPaths(real(self.config.output_root), self.config.run)

    @property
    def otherwise(self) -> str:
        """How it was trained, if the plan has changed since; else empty."""
        found = trained_otherwise(self.paths, self.config)
        return f"it was trained with {', '.join(found)}" if found else ""

    @property
    def is_finished(self) -> bool:
        """Has the run finished, so that a start would neither train on (ENDS) nor take anything over (SAID)? With other
        settings that have changed since, which `otherwise` tells, nothing would be trained."""
        trained, planned = (read_json(self.paths.json) or {}).get("settings"), self.config.to_dict()
        if not isinstance(trained, dict) or (read_status(self.paths) or {}).get("state") != "finished":
            return False
        ignored = {*NO_RECIPE} - ({"criterion"} if self.config.stop_when else set())  # these may have ended it
        said = {name for name in SAID if planned[name] not in (None, [], getattr(TrainConfig, name))}
        return all(trained.get(name) == planned[name] for name in {*ENDS, *said} - ignored)


@dataclass(frozen=True)
class RunPlan:
    """The runs of a plan, in the order in which they are trained."""

    name: str
    runs: tuple[PlannedRun, ...]
    rank_by: str | None
    content: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the comparison."""
        return self.runs[0].paths.root / "metrics" / "comparisons" / self.name

    @property
    def purposes(self) -> dict[str, Purpose]:
        """Run → what it is for, by the plan."""
        changes = {run: "; but ".join(filter(None, (run.changes, run.otherwise))) for run in self.runs}
        return {run.name: Purpose.of(run.config, words) for run, words in changes.items()}

    @property
    def settings_folder(self) -> Path:
        """Folder with the settings of each run, for the job array. Every version of a plan has its own."""
        digest = sha256(json.dumps([run.arguments for run in self.runs]).encode()).hexdigest()[:8]
        return self.folder.with_name(f"{self.name}-settings-{digest}")

    @property
    def all_settings_folders(self) -> list[Path]:
        """Those of all versions of the plan that were submitted."""
        return sorted(self.folder.parent.glob(f"{glob.escape(self.name)}-settings-{'?' * 8}"))

    def write_settings(self) -> None:
        """Write the settings of run N to `N.json`, and the plan to `plan.json`.

        Raises:
            OSError: the folder cannot be written.
        """
        self.settings_folder.mkdir(parents=True, exist_ok=True)
        for number, run in enumerate(self.runs):
            settings = {
                name: value for name, value in run.config.to_dict().items() if name not in (*NOT_HERE, "config")
            }
            places = {name: str(real(Path(settings[name]))) for name in ("data_root", "output_root")}
            text = json.dumps({**settings, **places, "run_name": run.name}, indent=2)
            atomic_write(self.settings_folder / f"{number}.json", text)
        base = {**(self.content.get("base") or {}), "output_root": str(self.runs[0].paths.root)}
        atomic_write(self.settings_folder / "plan.json", json.dumps({**self.content, "name": self.name, "base": base}))


def read_plan(path: Path, output_root: Path | None = None) -> RunPlan:
    """Read a plan and check every setting of every run. `output_root` takes precedence over the plan's own.

    Raises:
        RequestError: the file cannot be read, is no plan, or a setting is wrong; names the run and the setting.
    """
    content = _content(path)
    base = _of_all(path, content) | _settings(path, "base", content.get("base") or {})
    if output_root is not None:
        base["output_root"] = str(output_root)
    name = content.get("name") or path.stem
    if content.get("rank_by"):
        try:
            parse_rank_by(content["rank_by"])
        except RequestError as error:
            raise RequestError(f"{path}: {error}".replace("--rank-by", "rank_by:")) from None
    runs = tuple(_planned(path, name, words, base, changes) for words, changes in _variants(path, content))
    if len(runs) < 2:
        raise RequestError(
            f"{path}: a plan needs two or more runs, under runs:, grid: or seeds:; this one has {len(runs)}"
        )
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{path}: two runs would be called {twice}; give them other names or values")
    return RunPlan(name, runs, content.get("rank_by"), content)


def _of_all(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Problem, criteria, `stop_when` and notes of a plan as settings of its runs."""
    settings = {name: content[name] for name in ("problem", "stop_when") if content.get(name)}
    if content.get("notes"):
        for note in content["notes"]:
            if isinstance(note, (dict, list)):
                raise RequestError(f"{path}: notes: {note!r} is no text; one with a colon needs quotes")
        settings["note"] = list(map(str, content["notes"]))
    if content.get("criteria"):
        try:
            settings["criterion"] = criteria_texts(content["criteria"])
            parse_criteria(tuple(settings["criterion"]))
        except ValueError as error:
            raise RequestError(f"{path}: {error}") from None
    return settings


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise RequestError(f"the plan {path} cannot be read ({error}); see plans/example.yaml") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} is no plan: it holds no mapping with {', '.join(PARTS)}; see plans/example.yaml")
    for part, value in content.items():
        if part not in PARTS:
            raise RequestError(f"{path}: there is no {part!r} in a plan; it has {', '.join(PARTS)}")
        if value is not None and not isinstance(value, PARTS[part]):
            kinds = {str: "a text", dict: "a mapping", list: "a list"}
            raise RequestError(f"{path}: {part}: must be {kinds[PARTS[part]]}, not {value!r}")
    return content


def _settings(path: Path, where: str, settings: Any) -> dict[str, Any]:
    """The settings by the names of `TrainConfig`'s fields, without any that a plan must not set."""
    if not isinstance(settings, dict):
        raise RequestError(f"{path}, {where}: must be a mapping of settings, such as {{lr: 0.001}}, not {settings!r}")
    named = with_known_names(settings, f"{path}, {where}")
    for name in named:
        if name in NOT_HERE or (name in OF_ALL and where != "base"):
            raise RequestError(
                f"{path}, {where}: {name} cannot stand here: {NOT_HERE.get(name, 'all runs share it, in base')}"
            )
        if name in IN_WORDS and where != "grid" and not isinstance(named[name], str | None):
            raise RequestError(f"{path}, {where}: {name}: must be a text, not {named[name]!r}: put it in quotes")
    if where == "base" and "criterion" in named:
        raise RequestError(f"{path}, base: criterion cannot stand here: those of all runs stand in criteria:")
    if isinstance(named.get("criterion"), list) and where != "grid":  # there, it is a list of values
        try:
            named["criterion"] = criteria_texts(named["criterion"])
        except ValueError as error:
            raise RequestError(f"{path}, {where}: {str(error).replace('criteria:', 'criterion:')}") from None
    return named


def _variants(path: Path, content: dict[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """Parts of the name and changes of each run: every combination of runs, grid values and seeds."""
    runs = content.get("runs") or {}
    if wrong := [name for name in runs if isinstance(name, bool)]:
        words = "on, yes or true" if wrong[0] else "off, no or false"
        raise RequestError(f"{path}, runs: YAML reads the name {words} as {wrong[0]}: put it in quotes")
    axes = [
        [([str(name)], _settings(path, f"run {name!r}", changes or {})) for name, changes in runs.items()] or [([], {})]
    ]
    grid = _settings(path, "grid", content.get("grid") or {})
    if content.get("seeds"):
        grid["seed"] = content["seeds"]
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise RequestError(
                f"{path}, grid: {name}: must be a list of values, such as [0.001, 0.003], not {values!r}"
            )
        axes.append([([f"{name}={_value_in_name(value)}"], {name: value}) for value in values])
    variants = []
    for choice in itertools.product(*axes):
        words, changes = [word for part, _ in choice for word in part], {}
        for _, change in choice:
            changes |= change
        variants.append((words, changes))
    return variants


def _value_in_name(value: Any) -> str:
    """A value in a run's name: `0.001`, `16x32x64`."""
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+=-]", "_", text)


def _planned(path: Path, plan: str, words: list[str], base: dict[str, Any], changes: dict[str, Any]) -> PlannedRun:
    name, settings = "-".join([plan, *words]), {**base, **changes}
    arguments = [*to_arguments(settings, f"{path}, run {name}"), "--run-name", name]
    try:
        config = parse_args(arguments)
    except RequestError as error:
        raise RequestError(f"{path}, run {name}: {error}") from error
    return PlannedRun(tuple(arguments), config, _changes_words(config, changes, base))


def _changes_words(config: TrainConfig, changes: dict[str, Any], base: dict[str, Any]) -> str:
    """`lr` 0.003 (base 0.001), for each setting that a run changes in the base; without its reasons and its seed."""
    usual = vars(preset(config.preset, recipe=config.recipe))
    words = []
    for name in [name for name in changes if name not in (*NO_RECIPE, "seed")]:
        value, before = getattr(config, name), base.get(name, usual[name])
        if setting_words(value) != setting_words(before):
            words.append(f"`{name}` {setting_words(value)} (base {setting_words(before)})")
    return ", ".join(words) or "nothing: the base"
