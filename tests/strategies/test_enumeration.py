"""`exhaustive` and `random`: order, completeness, uniformity, and spaces too large to be built."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune import plugins
from neural_tune.errors import ConfigError
from neural_tune.space import TuningSpace
from neural_tune.testing import begin, drive
from neural_tune.testing.spaces import INT8, choices, op, small_spaces, space_of
from neural_tune.values import FLOAT, Observer
from neural_tune_strategies.enumeration import Enumeration
from neural_tune_strategies.exhaustive import Exhaustive
from neural_tune_strategies.random import Random

SPACES = {name: space for name, space in small_spaces().items() if space.groups}
HUGE = space_of(
    *(op(f"c{number}", "Conv", choices(Observer.KL, Observer.MSE, per_tensor=True)) for number in range(200))
)


def candidates(history):
    return [result.trial.candidate for result in history.results]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_exhaustive_follows_the_order_of_the_space(space):
    history = drive(Exhaustive(), space, lambda _: 0.0, begin(1.0))
    assert candidates(history) == list(space)
    assert len(history.results) == space.size == Exhaustive().forecast(space).worst
    assert Exhaustive().propose(space, history) is None


def test_exhaustive_on_two_ops_by_hand():
    space = space_of(op("a", "Conv", choices(Observer.KL)), op("b"))
    kl = choices(Observer.KL)[1]
    history = drive(Exhaustive(), space, lambda _: 0.0, begin(1.0))
    assert [dict(candidate.ops) for candidate in candidates(history)] == [
        {"a": INT8, "b": INT8},
        {"a": INT8},
        {"a": kl, "b": INT8},
        {"a": kl},
        {"b": INT8},
    ]


def test_exhaustive_stops_at_the_first_accepted_and_counts_its_trials():
    space = space_of(*(op(f"c{number}") for number in range(4)))
    history = drive(Exhaustive(), space, lambda c: 1.0 if "c2" not in c.ops else 0.0, begin(1.0))
    assert len(history.results) == 3  # "", c3, c2
    assert set(candidates(history)[-1].ops) == {"c0", "c1", "c3"}
    onwards = drive(Exhaustive(), space, lambda _: 1.0, begin(1.0), until_content=False)
    assert len(onwards.results) == 15


def test_exhaustive_fills_gaps_of_a_resumed_history_first():
    space = SPACES["five ops"]
    whole = drive(Exhaustive(), space, lambda _: 0.0, begin(1.0), max_trials=10)
    gap = replace(whole, results=(*whole.results[:3], *whole.results[4:]))
    assert Exhaustive().propose(space, gap).candidate == whole.results[3].trial.candidate


@pytest.mark.parametrize("make", [Exhaustive, Random])
@pytest.mark.parametrize("workers", [2, 7])
def test_workers_try_the_candidates_of_a_single_one_in_its_order(make, workers):
    space = SPACES["five ops"]
    alone = drive(make(3), space, lambda _: 0.0, begin(1.0))
    together = drive(make(3), space, lambda _: 0.0, begin(1.0), workers=workers)
    assert candidates(together) == candidates(alone)


@pytest.mark.parametrize("make", [Exhaustive, Random])
def test_a_space_of_7_to_the_200_is_walked_without_being_built(make):
    start = time.perf_counter()
    history = drive(make(3), HUGE, lambda _: 0.0, begin(1.0), max_trials=50)
    assert len(set(candidates(history))) == 50
    assert all(map(HUGE.contains, candidates(history)))
    assert HUGE.size == 7**200 - 1 == make(3).forecast(HUGE).worst
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("make", [Exhaustive, Random])
def test_resuming_after_a_thousand_trials_costs_little_more_than_reading_them(make):
    space = space_of(*(op(f"c{number}") for number in range(11)))
    history = drive(make(3), space, lambda _: 0.0, begin(1.0), max_trials=1000)
    start = time.perf_counter()
    assert make(3).propose(space, history).candidate.digest not in history.seen
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_random_draws_the_whole_space_once_and_then_ends(space):
    history = drive(Random(11), space, lambda _: 0.0, begin(1.0))
    assert set(candidates(history)) == set(space)
    assert len(history.results) == space.size
    assert Random(11).propose(space, history) is None


def test_random_depends_on_the_seed():
    space = SPACES["five ops"]
    orders = [tuple(candidates(drive(Random(seed), space, lambda _: 0.0, begin(1.0)))) for seed in range(5)]
    assert len(set(orders)) == 5


def test_random_sequence_is_pinned_so_that_old_journals_can_be_resumed():
    space = SPACES["five ops"]
    numbering = Enumeration(space)
    history = drive(Random(0), space, lambda _: 0.0, begin(1.0), max_trials=8)
    assert [numbering.number(candidate) for candidate in candidates(history)] == [27, 15, 4, 0, 5, 30, 10, 23]


def test_first_random_draw_is_uniform_over_the_space():
    space = space_of(op("a", "Conv", choices(Observer.KL)), op("b"), op("c"))  # 11 candidates
    numbering = Enumeration(space)
    draws = 2200
    counts = Counter(numbering.number(Random(seed).propose(space, begin(1.0)).candidate) for seed in range(draws))
    expected = draws / space.size
    statistic = sum((counts[number] - expected) ** 2 / expected for number in range(space.size))
    assert statistic < 29.6  # chi-square with 10 degrees of freedom, p = 0.001; the seeds are fixed


def test_random_orders_of_a_tiny_space_are_all_reached_evenly():
    space = space_of(op("a"), op("b"))  # 3 candidates, 6 orders
    orders = Counter(tuple(candidates(drive(Random(seed), space, lambda _: 0.0, begin(1.0)))) for seed in range(600))
    assert len(orders) == math.factorial(3)
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 20.5  # 5 degrees of freedom, p = 0.001


def test_float_fallback_is_among_the_draws_of_every_op():
    history = drive(Random(1), HUGE, lambda _: 0.0, begin(1.0), max_trials=60)
    for group in HUGE.groups:
        assert any(HUGE.choice_of(candidate, group) == FLOAT for candidate in candidates(history))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from(["", "g", "h"])), min_size=1, max_size=4))
def test_numbers_are_a_bijection_in_the_order_of_the_space(shape):
    observers = (Observer.KL, Observer.MSE)
    space = space_of(
        *(
            op(f"o{place}", "Conv", choices(*observers[:count], per_tensor=grains), group=group)
            for place, (count, grains, group) in enumerate(shape)
        )
    )
    numbering = Enumeration(space)
    some = list(itertools.islice(space, 300))
    assert [numbering.candidate(number) for number in range(len(some))] == some
    assert [numbering.number(candidate) for candidate in some] == list(range(len(some)))
    assert numbering.size == space.size
    assert numbering.number(space.preferred().with_ops(dict.fromkeys(space.op_names, FLOAT))) is None


@pytest.mark.parametrize("name", ["basic", "exhaustive", "random"])
def test_unknown_options_are_a_config_error_that_names_them(name):
    with pytest.raises(
        ConfigError, match=f"strategy '{name}': unknown options alpha, beta; it takes none besides seed"
    ):
        plugins.strategy(name, 0, beta=1, alpha=2)
    assert plugins.strategy(name, 0).name == name


def test_strategies_are_loaded_at_first_use():
    import subprocess
    import sys

    code = (
        "import sys; from neural_tune import plugins; found = plugins.strategies();"
        "assert {'basic', 'exhaustive', 'random'} <= set(found);"
        "print(sorted(name for name in sys.modules if name.startswith('neural_tune_strategies')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['neural_tune_strategies', 'neural_tune_strategies.plugin']"


def test_recipes_that_the_user_switched_on_are_part_of_every_candidate():
    capability = replace(SPACES["two ops"].capability, recipes=("equalize",))
    space = TuningSpace.of(capability, recipes={"equalize": True})
    for make in (Exhaustive, Random):
        history = drive(make(3), space, lambda _: 0.0, begin(1.0))
        assert len(history.results) == len(set(candidates(history))) == space.size
        assert all(candidate.recipes == ("equalize",) for candidate in candidates(history))
