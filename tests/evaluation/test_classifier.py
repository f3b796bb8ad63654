"""The reference classifier, how it is kept, and what is measured by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.evaluation import measures as parts
from ddpm.evaluation.classifier import Recipe, ReferenceClassifier
from ddpm.evaluation.measures import nearest
from ddpm.evaluation.reference_classifier import _save, load_or_train
from ddpm.evaluation.scores import Estimate
from ddpm.evaluation.sweeps import recommend, recommend_length
from ddpm.run.config import TrainConfig
from ddpm.training import data
from ddpm.training.data import Images
from tests.conftest import ONE, random_images
from tests.support.savers import flip_a_bit

QUICK = Recipe(images=256, batch=16)  # on 64 images: 4 epochs of 4 steps


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def splits(small_data: Path) -> tuple[Images, Images]:
    """282 training and 141 test images of embedded glyphs."""
    return data.load(TrainConfig(data_root=small_data), ONE)


@pytest.fixture(scope="module")
def classifier(splits: tuple[Images, Images], tmp_path_factory: pytest.TempPathFactory) -> ReferenceClassifier:
    return load_or_train(*splits, tmp_path_factory.mktemp("classifier"), silent, Recipe(batch=32))


@pytest.fixture(scope="module")
def few() -> tuple[Images, Images]:
    return random_images(64), random_images(20, seed=1)


def weights(classifier: ReferenceClassifier) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in classifier.network.state_dict().values()])


def test_a_few_images_of_each_class_teach_it_far_more_than_chance(classifier: ReferenceClassifier):
    assert classifier.meta["top1"] > 10 / 47
    assert classifier.meta["top5"] > classifier.meta["top1"]


def test_what_it_was_trained_on_it_knows(classifier: ReferenceClassifier, splits: tuple[Images, Images]):
    train = splits[0]
    predictions = classifier(train.pixels)
    assert predictions.probabilities.shape == (282, 47) and predictions.features.shape == (282, 128)
    assert (predictions.predicted == train.labels).float().mean() > 0.6


def test_a_verdict_does_not_depend_on_size_company_or_autocast(
    classifier: ReferenceClassifier, splits: tuple[Images, Images]
):
    pixels = splits[0].pixels[:40]
    alone = torch.cat([classifier(each[None]).features for each in pixels])
    with torch.autocast("cpu", torch.bfloat16):
        together = classifier(pixels.numpy())
    torch.testing.assert_close(alone, together.features, rtol=1e-4, atol=1e-5)
    larger = classifier(pixels.repeat_interleave(3, 1).repeat_interleave(3, 2))
    assert (larger.predicted == together.predicted).float().mean() > 0.8


def test_the_same_data_give_the_same_classifier_and_other_randomness_is_left_alone(few, tmp_path: Path):
    before = torch.get_rng_state()
    first = load_or_train(*few, tmp_path / "a", silent, QUICK)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(123)
    assert weights(first).equal(weights(load_or_train(*few, tmp_path / "b", silent, QUICK)))


def test_it_is_trained_once_for_its_data_and_recipe(few, tmp_path: Path):
    said: list[str] = []
    first = load_or_train(*few, tmp_path, said.append, QUICK)
    said.clear()
    again = load_or_train(*few, tmp_path, said.append, QUICK)
    assert not said and weights(again).equal(weights(first)) and again.meta == first.meta
    load_or_train(few[0], random_images(20, seed=2), tmp_path, said.append, QUICK)
    assert "training on 64 images" in said[0] and len(list(tmp_path.iterdir())) == 2
    said.clear()
    other = load_or_train(*few, tmp_path, said.append, replace(QUICK, lr=1e-3))
    assert "another recipe" in said[0] and other.meta["recipe"]["lr"] == 1e-3


def test_a_loaded_one_rounds_as_the_one_just_trained(few, tmp_path: Path):
    """Else a resumed run would have other figures than the run that trained the classifier."""
    trained, loaded = (load_or_train(*few, tmp_path, silent, QUICK)(few[1].pixels) for _ in range(2))
    assert loaded.features.equal(trained.features) and loaded.probabilities.equal(trained.probabilities)


@pytest.mark.parametrize("name", ["classifier.safetensors", "meta.json"])
def test_a_damaged_one_is_trained_anew_and_it_says_so(few, tmp_path: Path, name: str):
    said: list[str] = []
    first = load_or_train(*few, tmp_path, silent, QUICK)
    (file,) = tmp_path.glob(f"*/{name}")
    flip_a_bit(file) if name != "meta.json" else file.write_text(file.read_text()[:50])
    assert weights(load_or_train(*few, tmp_path, said.append, QUICK)).equal(weights(first))
    assert "cannot be used" in said[0]
    said.clear()
    load_or_train(*few, tmp_path, said.append, QUICK)
    assert not said


def test_one_that_another_process_has_saved_meanwhile_is_taken(few, tmp_path: Path):
    """Runs of a job array begin together; on GPUs each would go on with a judge of its own."""
    said: list[str] = []
    other = load_or_train(*few, tmp_path / "other", silent, QUICK)
    other.meta["seconds"] = 12.5

    def begins(line: str) -> None:
        said.append(line)
        if "training on" in line:  # the other is done while this one trains
            _save(other, tmp_path / "here" / next((tmp_path / "other").iterdir()).name, lambda: other)

    found = load_or_train(*few, tmp_path / "here", begins, QUICK)
    assert found.meta["seconds"] == 12.5 and "another process has saved one" in said[-1]
    assert [path.name for path in (tmp_path / "here").iterdir()] == [
        path.name for path in (tmp_path / "other").iterdir()
    ]


def test_a_folder_that_cannot_be_written_to_is_only_a_warning(few, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    assert load_or_train(*few, tmp_path / "file" / "folder", said.append, QUICK)
    assert "not saved" in said[-1]


def test_interrupted_training_leaves_nothing(few, tmp_path: Path):
    assert load_or_train(*few, tmp_path / "none", silent, QUICK, interrupted=lambda: True) is None
    assert not (tmp_path / "none").exists()


def test_a_planted_copy_is_found_at_distance_zero():
    known = random_images(700).pixels
    queries = torch.cat([known[650:651], known[3:4] ^ 1])
    distances, indices = nearest(queries, known, torch.device("cpu"))
    assert indices.tolist() == [650, 3]
    assert distances[0] == 0
    assert distances[1] == pytest.approx(28 / 255, rel=1e-5)  # every pixel is one grey level off


def test_the_nearest_is_the_nearest():
    queries, known = random_images(600, seed=1).pixels, random_images(50).pixels
    exact = torch.cdist(queries.flatten(1).double() / 255, known.flatten(1).double() / 255)
    distances, indices = nearest(queries, known, torch.device("cpu"))
    assert indices.equal(exact.argmin(1))
    torch.testing.assert_close(distances.double(), exact.min(1).values, rtol=1e-5, atol=0)


def test_copies_of_training_images_are_told_from_other_real_ones(splits: tuple[Images, Images]):
    train, test = splits
    copies, heldout = (parts.neighbours(pixels, train, 28) for pixels in (train.pixels[:90], test.pixels))
    part = parts.memorisation_part(copies, heldout, len(train))
    assert part["closer_than_heldout_p01"].value == 1 and part["generated"]["p95"] == 0 < part["heldout"]["p01"]
    assert sum(part["histogram"]["generated"]) == 90 and len(part["histogram"]["edges"]) == 61
    honest = parts.memorisation_part(heldout, heldout, len(train))
    assert honest["closer_than_heldout_p01"].value <= 0.02


@pytest.mark.parametrize("distances", [[1.0, 1.0 + 2**-23], [2.0, 2.0], [torch.nan, 3.0], [torch.nan, torch.nan]])
def test_distances_that_hardly_vary_or_are_no_numbers_have_a_histogram(distances):
    few = parts.Neighbours(torch.tensor(distances), torch.zeros(2, dtype=torch.int64))
    found = parts.memorisation_part(few, few, 2)["histogram"]
    assert sum(found["generated"]) == sum(found["heldout"]) == few.distances.isfinite().sum()
    assert (np.diff(found["edges"]) > 0).all()


def test_real_images_go_to_the_size_of_the_model_and_back(splits: tuple[Images, Images]):
    pixels = splits[1].pixels
    assert parts.as_drawn(pixels, 28).equal(pixels)
    larger = parts.as_drawn(pixels, 56)
    assert larger.shape == (141, 56, 56)
    assert (parts.as_judged(larger).float() - pixels).abs().mean() < 10  # grey levels


def test_the_halves_of_the_reference_share_no_image_and_hold_all_classes(
    classifier: ReferenceClassifier, splits: tuple[Images, Images]
):
    reference = parts.Reference.of(classifier, splits[1], 28)
    assert len(reference.half) + len(reference.other_half) == 141
    assert torch.cdist(reference.half, reference.other_half).min() > 0
    order, turns = parts.round_robin(reference.labels, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(141))
    assert all(len(set(reference.labels[part].tolist())) == 47 for part in order.split(47))
    assert turns.tolist() == [turn for turn in range(3) for _ in range(47)]


def test_the_halves_of_the_reference_are_alike_where_classes_differ_in_size():
    labels = torch.arange(47).repeat_interleave(torch.arange(47) % 5 + 2)
    order, turns = parts.round_robin(labels, torch.Generator().manual_seed(0))
    counts = [torch.bincount(labels[order[turns % 2 == half]], minlength=47) for half in (0, 1)]
    assert sum(counts).equal(torch.bincount(labels)) and ((counts[0] - counts[1]) <= 1).all() and counts[1].min() > 0


def test_images_of_few_classes_have_an_imbalance_with_an_interval():
    """Resampling gives the same distance each time: a bootstrap would be sure of it."""
    for classes in (1, 2, 10):
        estimate = parts.class_imbalance(torch.arange(47) % classes, 47)
        assert estimate.value == pytest.approx(1 - classes / 47)
        assert estimate.low < estimate.value - 0.05 and estimate.value - 1e-9 < estimate.high <= 1


def test_distances_compare_generated_and_real_at_the_same_count(
    classifier: ReferenceClassifier, splits: tuple[Images, Images]
):
    reference = parts.Reference.of(classifier, splits[1], 28)
    found = reference.distances(classifier(splits[0].pixels).features)
    assert found["frechet"].count == found["frechet_real"].count == len(reference.other_half)
    noise = reference.distances(classifier(random_images(60).pixels).features)
    assert noise["frechet"].count == noise["frechet_real"].count == min(60, len(reference.other_half))
    assert noise["frechet"].low > found["frechet"].high


def test_real_images_get_full_marks(classifier: ReferenceClassifier, splits: tuple[Images, Images]):
    test = splits[1]
    reference = parts.Reference.of(classifier, test, 28)
    part = parts.conditional_part(classifier(test.pixels), test.labels, reference)
    assert part["rca"].value == 1 and part["top1"] == part["real_top1"]
    assert sum(map(sum, part["confusion"])) == 141 and all(row["count"] == 3 for row in part["per_class"])
    balance = parts.balance_part(classifier(test.pixels), reference)
    assert balance["total_variation"].value == pytest.approx(balance["real_total_variation"].value)


def row(sampler: str, steps: int, rca: float, frechet: float, seconds: float) -> dict:
    around = {"rca": (rca, 0.02), "frechet": (frechet, 0.5)}
    scores = {name: Estimate(value, value - half, value + half, 470) for name, (value, half) in around.items()}
    return {"sampler": sampler, "steps": steps, "seconds_per_image": seconds, **scores}


def test_the_fastest_sampler_that_cannot_be_told_from_the_best_is_recommended():
    rows = [row("ddpm", 600, 0.97, 2.0, 60), row("ddim", 50, 0.96, 2.4, 5), row("dpm++", 20, 0.96, 2.8, 2)]
    rows += [row("dpm++", 10, 0.96, 4.0, 1), row("ddim", 10, 0.80, 2.0, 1)]
    best = recommend(rows)
    assert (best["sampler"], best["steps"]) == ("dpm++", 20)
    assert "0.970 [0.950, 0.990] with ddpm 600" in best["why"]


def test_nothing_is_recommended_where_nothing_is_compared_or_the_images_are_too_few():
    assert recommend([]) is None
    assert recommend([row("ddim", 50, 0.9, 2.0, 1)]) is None
    rows = [row("ddpm", 600, 0.97, 2.0, 60), row("dpm++", 10, 0.9, 2.0, 1)]
    assert recommend(rows)["steps"] == 600
    for each in rows:  # of 47 images: the intervals overlap, and so they would if one were far worse
        each["rca"] = replace(each["rca"], low=each["rca"].value - 0.15, high=each["rca"].value + 0.15)
    assert recommend(rows) is None


def test_a_length_is_recommended_only_if_it_is_shown_to_be_better_than_the_ema():
    def length(value: float | None, rca: float, frechet: float) -> dict:
        return {"ema_length": value, **row("ddim", 20, rca, frechet, 1)}

    rows = [length(None, 0.8, 4.0), length(0.05, 0.81, 2.9), length(0.075, 0.8, 2.5), length(0.15, 0.6, 2.0)]
    best = recommend_length(rows)
    assert best["ema_length"] == 0.075  # the longest makes the characters less readable
    assert "2.500 [2.000, 3.000], of the EMA 4.000 [3.500, 4.500]" in best["why"]
    assert recommend_length([length(None, 0.8, 3.4), *rows[1:]]) is None  # the intervals overlap
    assert recommend_length([length(None, 0.7, 3.4), *rows[1:]])["ema_length"] == 0.075  # but not those of RCA
    assert recommend_length([length(None, 0.7, 1.0), *rows[1:]]) is None  # less readable, but its distance is smaller
    assert recommend_length(rows[:1]) is None


def test_a_small_data_set_is_learned_too(tmp_path: Path):
    """Its 16 epochs in batches of 128 are 16 steps, after which the classifier reads by chance."""
    some, test = (set_of_shapes(count, seed) for count, seed in ((20, 0), (3, 1)))
    classifier = load_or_train(some, test, tmp_path, silent)
    assert classifier.meta["top1"] > 0.9, classifier.meta


def set_of_shapes(per_class: int, seed: int) -> Images:
    """Rectangles of 17 sizes, at random places."""
    source = torch.Generator().manual_seed(seed)
    pixels, labels = torch.zeros(17 * per_class, 28, 28, dtype=torch.uint8), torch.arange(17).repeat(per_class)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        height, width = 4 + 4 * (label // 5), 4 + 4 * (label % 5)
        top, left = (int(torch.randint(0, 28 - side, (), generator=source)) for side in (height, width))
        image[top : top + height, left : left + width] = 255
    return Images(pixels, labels, tuple("abcdefghijklmnopq"))


@pytest.mark.slow
def test_real_characters_are_recognised(emnist: Path, tmp_path: Path):
    """Some of them, seen a few times; the whole recipe on 18,800 gets 88%."""
    train, test = data.load(TrainConfig(data_root=emnist), ONE)
    some = train[torch.arange(200 * 47)]
    classifier = load_or_train(some, test, tmp_path, print, Recipe(images=6 * len(some)))
    assert classifier.meta["epochs"] == 6
    assert classifier.meta["top1"] > 0.78 and classifier.meta["top5"] > 0.96, classifier.meta
