"""A finished run that is started again: its files take over what the command says, and its report is renewed."""

from __future__ import annotations

import sys
from dataclasses import replace

from ddpm.run.cli import flag
from ddpm.run.config import NO_RECIPE, TrainConfig
from ddpm.run.files import atomic_write, strict_json, why_and_cure
from ddpm.run.paths import REPORTED, RunPaths
from metrics.compare.figures import setting_words
from metrics.criteria.of_run import verdicts_of
from metrics.files import read_json
from metrics.note.notes import add_notes_of_command
from metrics.run_reader import load_run

SAID = ("criterion", "problem", "why", "expect", "target", "baseline", "best_by")  # settings that train nothing
# what decides whether a run is finished, which has been looked at
ENDS = ("epochs", "max_steps", "stop_when", "early_stop_patience", "early_stop_metric", "min_delta")


def bring_up_to_date(paths: RunPaths, config: TrainConfig) -> int:
    """Take over what the settings say, renew the report, and print what is new and where the files are. Returns the
    exit code."""
    try:
        told = take_over(paths, config)
    except OSError as error:
        print(f"error: notes and criteria cannot be added: {why_and_cure(error)}", file=sys.stderr)
        return 1
    outdated = renew_report(paths)
    renew_training_log(paths)
    if ignored := trained_otherwise(paths, config):
        print(f"not applied, as nothing is trained: {'; '.join(ignored)}: give another --run-name, or --resume never")
    for line in told:
        print(line)
    if (chose := _before((read_json(paths.json) or {}).get("settings") or {}, "best_by")) != config.best_by:
        print(f"`best` stays as --best-by {chose} chose it: {config.best_by} is what a command without the flag means")
    for label, path in paths.artifacts().items():
        if label not in outdated:
            print(f"{label}: {paths.root / path}")
    return 0


def trained_otherwise(paths: RunPaths, config: TrainConfig) -> list[str]:
    """The settings that a run was trained with and that are not those of `config`: "`lr` 0.001 instead of 0.003"."""
    trained, asked = (read_json(paths.json) or {}).get("settings"), config.to_dict()
    known = trained if isinstance(trained, dict) else {}
    names = [name for name in asked if name in known and name not in {*NO_RECIPE, *SAID, *ENDS}]
    return [
        f"`{name}` {setting_words(known[name])} instead of {setting_words(asked[name])}"
        for name in names
        if known[name] != asked[name]
    ]


def take_over(paths: RunPaths, config: TrainConfig) -> list[str]:
    """Add remarks, criteria and reasons of the settings to the run's files, and write its training log again. A remark
    says which criteria and reasons were given only when the results were known.

    What the settings leave out stays as it was. Returns lines about what is new, none if nothing is.

    Raises:
        OSError: the run's folder cannot be written.
    """
    document, given = read_json(paths.json) or {}, config.to_dict()
    before = document.get("settings") or {}
    new = {
        name: given[name]
        for name in SAID
        if given[name] not in (None, [], getattr(TrainConfig, name), _before(before, name))
    }
    late = [f"given after the end of training: {flag(name)} {_words(value)}" for name, value in new.items()]
    lines = [f"note: {text}" for text in add_notes_of_command(paths, [*config.note, *late])]
    if new:
        atomic_write(paths.json, strict_json({**document, "settings": before | new}, indent=2))
        lines.append(f"taken over without training: {', '.join(map(flag, new))}")
    best_by, criteria = (_before(before | new, name) for name in ("best_by", "criterion"))
    if "best_by" in new or ("criterion" in new and best_by == "criteria"):
        from ddpm.training.keeping import update_best  # here, as sweeps need not wait for torch

        update_best(paths.checkpoints, replace(config, best_by=best_by, criterion=tuple(criteria)))
    if "criterion" in new:
        judged = verdicts_of(load_run(paths))
        lines += [f"criterion {one.state}: {one.criterion.name}: {one.words}" for one in judged]
    if lines:
        from metrics.training_log.log import write_training_log  # here, as other starts need not wait for it

        write_training_log(paths)
    return lines


def renew_report(paths: RunPaths) -> tuple[str, ...]:
    """Write the report if it is missing or older than its data. Returns the labels of files that are outdated."""
    newest = max(path.stat().st_mtime for path in (paths.json, paths.notes) if path.exists())
    if paths.report.exists() and paths.report.stat().st_mtime >= newest:
        return ()
    try:
        from metrics.report import write_report  # here, for the same reason

        write_report(paths)
    except Exception as error:
        again = paths.command("python -m metrics.report")
        print(f"could not write the report (later: {again}): {error}", file=sys.stderr)
        return REPORTED
    return ()


def renew_training_log(paths: RunPaths) -> None:
    """Write the training log if it is older than the report: the run was killed between the two, as it ended."""
    page, report = paths.training_log, paths.report
    if page.exists() and report.exists() and page.stat().st_mtime >= report.stat().st_mtime:
        return
    try:
        from metrics.training_log.log import write_training_log  # here, for the same reason

        write_training_log(paths)
    except Exception as error:
        again = paths.command("python -m metrics.training_log")
        print(f"could not write the training log (later: {again}): {error}", file=sys.stderr)


def _words(value: object) -> str:
    return "; ".join(value) if isinstance(value, list) else str(value)


def _before(settings: dict, name: str) -> object:
    """A setting as the run had it: its default, in runs of versions without it."""
    return settings.get(name, getattr(TrainConfig, name))
