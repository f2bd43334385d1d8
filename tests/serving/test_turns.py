"""Whose turn it is, and how much is taken."""

import concurrent.futures

import pytest
from fake_service import description, wait_for

from mlseg_jax.serving.limits import Limits, Places, Turns, never
from mlseg_jax.serving.looking import check_windows
from mlseg_jax.serving.problems import RequestProblem


def test_turns_come_as_they_were_asked_for():
    turns, order = Turns(Limits(wait=0.05)), []
    with turns.one(never), pytest.raises(RequestProblem, match="did not come"):
        turns._begin()
    turns = Turns(Limits())

    def take(number):
        with turns.one(never):
            order.append(number)

    with turns.one(never), concurrent.futures.ThreadPoolExecutor(6) as pool:
        for number in range(5):
            pool.submit(take, number)
            wait_for(lambda: len(turns) == number + 1)  # noqa: B023
        turns._end()  # and this one asks again at once
        turns._begin()
        order.append("again")
    assert order == [0, 1, 2, 3, 4, "again"]


def test_places_are_counted_by_bytes_and_by_client():
    places = Places(3, 2, most_bytes=10)
    with places.one("a", 6):
        with pytest.raises(RequestProblem, match="Too many requests"):
            places.one("b", 5).__enter__()
        with places.one("a", 1), pytest.raises(RequestProblem, match="of your"):
            places.one("a").__enter__()
        with places.one("b", 4):
            assert len(places) == 2
    assert len(places) == places._bytes == 0


def test_scales_do_not_get_round_the_limit_of_pixels():
    limits = Limits(windows=10**9)
    check_windows(description(), (4000, 4000), (1.0,), limits)
    with pytest.raises(RequestProblem, match="looked at with 256,000,000 pixels"):
        check_windows(description(), (4000, 4000), (1.0, 4.0), limits)
