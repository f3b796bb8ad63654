"""What an evaluation shows, in sentences for the report and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm.data.classes import thing
from ddpm.evaluation.findings import NEAR_CHANCE, WEAK, best_row, class_interval, copying, weak_classes
from ddpm.run.datasets import data_words
from ddpm.run.evaluation_figures import (
    AUGMENTED,
    CAS,
    CAS_UNGUIDED,
    COVERAGE,
    DENSITY,
    FRECHET,
    IMBALANCE,
    PRECISION,
    RCA,
    RCA_UNGUIDED,
    RECALL,
    TOP1,
    VERY_CLOSE,
    WORTH,
    at,
)  # fmt: skip
from ddpm.run.evaluation_file import mixture_words, real_images_words
from ddpm.run.format import plural
from ddpm.run.guidance import guidance_of
from metrics.evaluation.plots import strongest_confusions
from metrics.page import code

SHOWN_CLASSES = 3  # weakest classes that are named


def things(evaluation: dict[str, Any]) -> str:
    """What the sentences call the images: characters, if the data are some."""
    return f"{thing(evaluation['data'])}s"


def lead(evaluation: dict[str, Any]) -> list[str]:
    """First the classifier's own accuracy, then its results for the model's images. Before both, whether it is compared
    with other data than its own."""
    classifier, generated, distances = (evaluation[part] for part in ("classifier", "conditional", "distances"))
    usual = " (with all 112,800 training images of EMNIST Balanced, 88 to 91% is usual; with fewer it is less)"
    other = []
    if evaluation["trained_on"] not in (None, evaluation["data"]):
        trained_on, compared = data_words(evaluation["trained_on"]), data_words(evaluation["data"])
        other = [
            f"**The model was trained on {trained_on}, and is compared here with {compared}**, in all that follows."
        ]
    return [
        *other,
        f"The check first: a classifier, trained on the {classifier['train_images']:,} training images, reads "
        f"{TOP1.words_of(classifier)} of the {classifier['test_images']:,} test images correctly"
        f"{usual if evaluation['data'] == 'emnist' else ''}. {test_images_sentence(evaluation)}",
        f"It reads {TOP1.words_of(generated)} of the {TOP1.of(generated)['count']:,} generated {things(evaluation)} as "
        f"the class that was asked for: **RCA {RCA.words_of(generated)}**, where 1 is as readable as test images"
        f"{unguided_words(evaluation)}. "
        f"Their Fréchet distance to test images is {FRECHET.words_of(distances)}, that of other test images "
        f"{FRECHET.words(distances['frechet_real'])}.",
    ]


def unguided_words(evaluation: dict[str, Any]) -> str:
    """The RCA without guidance, if it was measured and the run's guidance is another."""
    estimate = at(evaluation, RCA_UNGUIDED.place)
    if estimate is None or evaluation["sampler"]["guidance_scale"] == 1:
        return ""
    return f" and more is more typical than they are (at guidance 1: {RCA_UNGUIDED.words(estimate)})"


def test_images_sentence(evaluation: dict[str, Any]) -> str:
    images = evaluation["test_images"]
    if images is None:
        return "Some may also be used for validation: this evaluation was made before the two sets were separated."
    mixture = mixture_words([entry["real_count"] for entry in evaluation["conditional"]["per_class"]])
    return f"Test images, here and below, are {real_images_words(images)}.{mixture}"


def learning_words(evaluation: dict[str, Any]) -> list[str]:
    """What a classifier learns from the generated images, and which classes teach it least."""
    part = evaluation["learning"]
    if part is None:
        return ["Not measured (evaluate.py measures it, unless told --no-cas)."]
    known = [entry for entry in part["per_class"] if entry[CAS.key] is not None]
    classes = sorted(known, key=lambda entry: entry[CAS.key])[:SHOWN_CLASSES]
    named = ", ".join(
        f"{code(entry['name'])} ({TOP1.text(entry['accuracy'])}; from real ones {TOP1.text(entry['real_accuracy'])})"
        for entry in classes
    )
    return [
        f"A classifier that has learned from {part['images']:,} generated {things(evaluation)} alone reads "
        f"{TOP1.words(part['accuracy'])} of the test images; one that has learned from as many real "
        f"ones {TOP1.words(part['real_accuracy'])}: **CAS {CAS.words_of(part)}**, where 1 is as good as real ones."
        f"{worth_words(part)}",
        f"At guidance 1 the CAS is {CAS_UNGUIDED.words_of(part)}. Real and generated {things(evaluation)} together "
        f"teach {AUGMENTED.words_of(part)} times what the real ones alone do.",
        f"Classes that it learned least, of {part['seeds']} classifiers each: {named}.",
    ]


def worth_words(learning: dict[str, Any]) -> str:
    """How many real images the generated ones are worth, as far as it was tried."""
    worth, curve = WORTH.of(learning), learning["curve"]
    if worth["value"] is None:
        return ""
    few, many = curve[0]["images"], curve[-1]["images"]
    if worth["value"] >= many:
        return f" It learned at least as much as from the {many:,} real ones that it was compared with."
    if worth["value"] <= few:
        return f" It learned no more than from {few:,} real ones."
    return f" It learned as much as from about {WORTH.text(worth['value'])} real ones {WORTH.interval_text(worth)}."


def readability_words(evaluation: dict[str, Any]) -> list[str]:
    """The classes that are shown to be weak, and the strongest confusions."""
    weak = weak_classes(evaluation)
    named = ", ".join(
        f"{code(entry['name'])} ({TOP1.text(TOP1.of(entry))} {_interval(class_interval(entry))}; test images "
        f"{TOP1.text(entry['real_top1'])})"
        for entry in weak[:SHOWN_CLASSES]
    )
    each = _count_per_class([entry["count"] for entry in evaluation["conditional"]["per_class"]], things(evaluation))
    if weak:
        weak_are = f"{plural(len(weak), 'class')} {'is' if len(weak) == 1 else 'are'}"
        words = f"{weak_are} below {WEAK} of the test images' Top-1, the weakest: {named}, of {each}."
    else:
        words = f"No class is shown to be below {WEAK} of the test images' Top-1, with {each}."
    pairs = strongest_confusions(evaluation, 4)
    mistaken = ", ".join(
        f"{code(asked)} as {code(read)} ({count} times, {share:.0%})" for asked, read, count, share in pairs
    )
    return [words, f"Misread most often: {mistaken or 'none'}."]


def _interval(ends: tuple[float, float]) -> str:
    return TOP1.interval_text(dict(zip(("low", "high"), ends, strict=True)))


def _count_per_class(counts: Sequence[int], what: str) -> str:
    few, many = min(counts), max(counts)
    return f"{few:,} {what} of each class" if few == many else f"{few:,} to {many:,} {what} of each class"


def variety_words(evaluation: dict[str, Any]) -> str:
    distances = evaluation["distances"]
    return (
        f"{PRECISION.words_of(distances)} of the generated {things(evaluation)} lie among the test images "
        f"(precision); {RECALL.words_of(distances)} of the test images lie among the generated "
        f"{things(evaluation)} (recall).{neighbourhood_words(evaluation)} {_balance_words(evaluation)}"
    )


def _balance_words(evaluation: dict[str, Any]) -> str:
    balance = evaluation["class_balance"]
    if not balance:
        return "The model was trained with every label in place, so it cannot draw without one."
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    order = sorted(zip(balance["shares"], names, strict=True), key=lambda pair: pair[0] or 0)
    least, most = (f"{code(name)} ({TOP1.text(share)})" for share, name in (order[0], order[-1]))
    return (
        f"Of {balance['count']:,} {things(evaluation)} drawn when no class was asked for, {most} was most "
        f"frequent and {least} least, where an even share is {TOP1.text(1 / len(names))}. Their imbalance (total "
        f"variation) is {IMBALANCE.words_of(balance)}, that of as many test images "
        f"{IMBALANCE.words(balance['real_total_variation'])}."
    )


def neighbourhood_words(evaluation: dict[str, Any]) -> str:
    distances = evaluation["distances"]
    if not (distances.get(COVERAGE.key) and distances.get(DENSITY.key)):
        return ""
    return (
        f" A generated {thing(evaluation['data'])} lies near {COVERAGE.words_of(distances)} of the test images "
        f"(coverage; other test images: {COVERAGE.words(distances['coverage_real'])}), and their density there is "
        f"{DENSITY.words_of(distances)} (other test images: {DENSITY.words(distances['density_real'])})."
    )


def copying_words(evaluation: dict[str, Any]) -> str:
    """Whether images were memorised, as far as the counts can show it."""
    if not evaluation["memorisation"]:
        return "Not measured: it was compared with other images than those that it was trained on."
    estimate = at(evaluation, VERY_CLOSE.place)
    words = (
        f"{VERY_CLOSE.words(estimate)} of the {estimate['count']:,} generated {things(evaluation)} are closer to a "
        "training image than 99% of the test images are; 1% would be chance."
    )
    heldout = sum(evaluation["memorisation"]["histogram"]["heldout"])
    return {
        "more than chance": f"{words} This is more: look at the closest pairs. One cause is copying. Another is strong "
        f"guidance: it makes {things(evaluation)} plainer than real ones, and plain ones are close to many images.",
        "near chance": f"{words} There is no sign of copying.",
        "too few to tell": f"{words} {estimate['count']:,} {things(evaluation)} and {heldout:,} test images are too "
        f"few to tell whether it is less than {NEAR_CHANCE:.0%}.",
    }[copying(evaluation)]


def recommended_words(evaluation: dict[str, Any]) -> str:
    rows, take = evaluation["samplers"], evaluation["recommended"]
    if not rows:
        return "Samplers were not compared (evaluate.py --sweeps does)."
    if take:
        return f"**`--sampler {take['sampler']} --steps {take['steps']}`**: {take['why']}."
    if len(rows) == 1:
        return "None is recommended: only one was measured."
    return (
        f"None is recommended: {RCA.of(rows[0])['count']:,} {things(evaluation)} each are too few to tell them apart "
        "(--sweep-samples-per-class)."
    )


def length_words(evaluation: dict[str, Any]) -> str:
    """The average of the weights that is shown to be better than the EMA, if one is. Lengths were compared."""
    rows, take = evaluation["ema_lengths"], evaluation["recommended_length"]
    if take:
        return f"**`--ema-length {take['ema_length']:g}`**: {take['why']}."
    return (
        f"None is recommended: with {RCA.of(rows[0])['count']:,} {things(evaluation)} each, no length is shown to be "
        "better than the EMA of the training."
    )


def guidance_words(evaluation: dict[str, Any]) -> str:
    """The best guidance by each figure, and what cannot be distinguished from it."""
    rows = evaluation["guidance"]
    if not rows:
        if not (evaluation["class_balance"] or evaluation["sampler"].get("guide")):
            return "None: the model was trained with every label in place, so only another one can guide it (--guide)."
        return "Guidance scales were not compared (evaluate.py --sweeps does)."
    sentences = []
    for figure, what in ((CAS, "highest CAS"), (RCA, "highest RCA"), (FRECHET, "lowest Fréchet distance")):
        best, others = best_row(rows, figure)
        if best is None:
            continue
        equal = ", ".join(map(guidance_of, others))
        apart = f"{equal} cannot be distinguished from it" if others else "it differs significantly from all others"
        apart = apart if len(rows) > 1 else "no other was measured"
        sentences.append(f"Guidance {guidance_of(best)} has the {what}, {figure.words_of(best)}; {apart}.")
    count = f"Each was measured on {RCA.of(rows[0])['count']:,} {things(evaluation)}."
    legend = [
        words
        for field, words in (
            ("guidance_interval", "“in” names the noise levels with guidance, from 0 (clean) to 1 (noise)."),
            ("guide", "“by” names the model that guides (autoguidance)."),
        )
        if any(row.get(field) for row in rows)
    ]
    return " ".join(
        [count, *sentences, *legend, f"Stronger guidance makes {things(evaluation)} plainer and more alike."]
    )
