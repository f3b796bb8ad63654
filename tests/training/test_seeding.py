"""Random numbers as functions of seed, use and position."""

import torch

from ddpm.training.seeding import Stream, derive, generator

EVERY_RUN_SO_FAR = {  # with seed 7 at position 12: a run is continued with the numbers that it began with
    Stream.INIT: 2028343703, Stream.ORDER: 2866581103, Stream.STEP: 738179827, Stream.VALIDATION: 1779874799,
    Stream.SAMPLING: 1079449135,
}  # fmt: skip


def test_the_numbers_are_those_of_every_run_so_far():
    assert {stream: derive(7, stream, 12) for stream in Stream} == EVERY_RUN_SO_FAR
    assert [*Stream] == [0, 1, 2, 3, 4]
    assert derive(7, Stream.INIT) == derive(7, Stream.INIT, 0)


def test_every_seed_use_and_position_has_numbers_of_its_own():
    derived = [derive(seed, stream, place) for seed in (0, 1, 2**40) for stream in Stream for place in range(100)]
    assert len(set(derived)) == len(derived)
    assert all(0 <= each < 2**32 for each in derived), "PyTorch's CPU generator takes no more"


def test_a_generator_gives_the_numbers_of_its_place_whatever_was_drawn_before():
    def drawn(*place: int) -> torch.Tensor:
        return torch.rand(5, generator=generator(torch.device("cpu"), 7, Stream.STEP, *place))

    first = drawn(12)
    torch.rand(3)
    assert drawn(12).equal(first) and not drawn(13).equal(first)
    assert drawn().equal(drawn(0))
