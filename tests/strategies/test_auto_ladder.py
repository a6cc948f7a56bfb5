"""Ranking, costs and ladder of `auto`, each alone."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune.space import TuningSpace
from neural_tune.testing.spaces import INT8, op, space_of
from neural_tune.values import (
    FLOAT,
    Capability,
    FrozenMap,
    Insight,
    LatencyProfile,
    Objective,
    Objectives,
    OpCapability,
    Role,
)
from neural_tune_strategies.auto.costs import Costs, costs_of, count_costs, latency_costs, size_costs
from neural_tune_strategies.auto.front import guiding, ladder
from neural_tune_strategies.auto.ranking import SharedDamage, error_model
from neural_tune_strategies.auto.tensors import families


def linked(name, inputs, outputs, *, role=Role.ANCHOR, parameters=0, offered=(INT8, FLOAT)):
    return OpCapability(
        name=name,
        type="Conv",
        role=role,
        choices=offered,
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
        why="t",
    )


def carrier(name, inputs, outputs):
    return linked(name, inputs, outputs, role=Role.PASS_THROUGH, offered=(FLOAT,))


def floats_of(rungs):
    return [" ".join(sorted(rung.floats)) for rung in rungs]


# tensors


def test_a_family_is_a_producer_with_all_readers_of_its_tensor():
    space = space_of(linked("p", ("x",), ("t",)), linked("c1", ("t",), ("y",)), linked("c2", ("t",), ("z",)))
    assert families(space) == (("p", "c1", "c2"),)


def test_tensors_before_and_behind_ops_that_carry_data_count_as_one():
    space = space_of(
        linked("p", ("x",), ("t",)),
        carrier("relu", ("t",), ("u",)),
        carrier("pool", ("u",), ("v",)),
        linked("c", ("v",), ("y",)),
    )
    assert families(space) == (("p", "c"),)


def test_a_float_op_between_two_groups_separates_them():
    softmax = linked("softmax", ("t",), ("u",), role=Role.NEVER, offered=(FLOAT,))
    space = space_of(linked("p", ("x",), ("t",)), softmax, linked("c", ("u",), ("y",)))
    assert families(space) == ()


# ranking


def test_divergences_of_single_groups_add_up():
    model = error_model("abc", (), {"a": 1.0, "b": 2.0, "c": 4.0})
    assert model.predict(()) == 7.0
    assert model.predict({"b"}) == 5.0
    assert model.predict("abc") == 0.0


def test_damage_around_a_bad_tensor_is_counted_once_and_needs_all_groups_in_float():
    divergence = dict.fromkeys("abcdefgh", 0.01) | {"c": 5.0, "d": 6.0}
    model = error_model("abcdefgh", [("b", "c"), ("c", "d"), ("d", "e")], divergence)
    assert model.shared == (SharedDamage(frozenset("cd"), 5.0),)
    assert model.predict(()) == pytest.approx(5.0 + 1.0 + 6 * 0.01)
    assert model.predict("c") == pytest.approx(5.0 + 1.0 + 6 * 0.01)
    assert model.predict("cd") == pytest.approx(6 * 0.01)


def test_neighbours_that_are_not_outliers_share_nothing():
    assert error_model("abcd", [("a", "b"), ("b", "c")], {"a": 1.0, "b": 1.2, "c": 0.9, "d": 1.0}).shared == ()


def test_two_bad_tensors_in_a_row_are_told_apart():
    divergence = dict.fromkeys("abcdefgh", 0.01) | {"c": 2.0, "d": 5.0, "e": 3.0}
    model = error_model("abcdefgh", [("c", "d"), ("d", "e")], divergence)
    assert model.shared == (SharedDamage(frozenset("de"), 3.0), SharedDamage(frozenset("cd"), 2.0))
    assert model.own["d"] == 0.0


def test_unknown_infinite_and_useless_divergences():
    model = error_model("abcd", (), {"a": math.inf, "b": 2.0, "c": math.nan})
    assert model.own == {"a": 20.0, "b": 2.0, "c": 2.0, "d": 2.0}
    for nothing in ({}, {"a": math.nan}, dict.fromkeys("abcd", 0.0)):
        flat = error_model("abcd", (), nothing)
        assert not flat.is_informed
        assert set(flat.own.values()) == {1.0}
    assert error_model("ab", (), {"a": math.inf, "b": math.inf}).is_informed


# costs


MILLISECONDS = st.floats(0.0, 4.0).map(lambda value: round(value, 3))


@st.composite
def profiled(draw, kinds=("group", "group", "group", "never", "carrier")):
    """Return a random graph of groups, float ops and carriers (and companions), with a profile."""
    tensors = ["x"]
    ops = []
    for place in range(draw(st.integers(2, 6))):
        inputs = tuple(draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=2, unique=True)))
        kind = draw(st.sampled_from(kinds))
        output = (f"t{place}",)
        if kind == "group":
            ops.append(linked(f"g{place}", inputs, output))
        elif kind == "companion":
            ops.append(linked(f"j{place}", inputs, output, role=Role.COMPANION))
        elif kind == "carrier":
            ops.append(carrier(f"r{place}", inputs[:1], output))
        else:
            ops.append(linked(f"n{place}", inputs, output, role=Role.NEVER, offered=(FLOAT,)))
        tensors += output
    names = [item.name for item in ops]
    profile = LatencyProfile(
        float_ms=FrozenMap({name: draw(MILLISECONDS) for name in names}),
        int8_ms=FrozenMap({name: draw(MILLISECONDS) for name in names}),
        border_ms=FrozenMap({tensor: draw(MILLISECONDS) for tensor in tensors}),
        leave_ms=FrozenMap({tensor: draw(MILLISECONDS) for tensor in tensors[::2]}),
    )
    return space_of(*ops), profile


@settings(max_examples=120, deadline=None)
@given(profiled(("group", "group", "companion", "never", "carrier")))
def test_predicted_milliseconds_are_those_of_the_profile(drawn):
    space, profile = drawn
    costs = latency_costs(space, profile, prefer_int8=False)
    names = [group.name for group in space.groups]
    for count in range(len(names) + 1):
        for floats in itertools.combinations(names, count):
            expected = profile.predict(space.capability, set(names) - set(floats))
            assert costs.predict(floats) == pytest.approx(expected, abs=1e-9)


def test_a_companion_beside_float_ops_costs_what_it_costs_in_float():
    """x - a - t - add(t, u): with `a` in float the addition has nothing to join, and leaving int8 has its own price."""
    space = space_of(
        linked("a", ("x",), ("t",)), linked("b", ("x",), ("u",)), linked("add", ("t", "u"), ("y",), role=Role.COMPANION)
    )
    profile = LatencyProfile(
        float_ms=FrozenMap({"a": 10.0, "b": 10.0, "add": 4.0}),
        int8_ms=FrozenMap({"a": 3.0, "b": 3.0, "add": 1.0}),
        border_ms=FrozenMap({"x": 0.5, "t": 7.0, "u": 7.0, "y": 7.0}),
        leave_ms=FrozenMap({"t": 0.25, "u": 0.25, "y": 0.125}),
    )
    costs = latency_costs(space, profile, prefer_int8=False)
    assert costs.predict(()) == pytest.approx(3 + 3 + 1 + 0.5 + 0.125)
    assert costs.predict(("a", "b")) == pytest.approx(10 + 10 + 4)
    assert costs.predict(("a",)) == pytest.approx(10 + 3 + 0.5 + 0.25 + 4)  # t is float and no int8 anchor reads it
    assert costs.predict(("add",)) == pytest.approx(3 + 3 + 4 + 0.5 + 0.25 + 0.25)


def test_the_objective_decides_the_costs():
    space = space_of(linked("a", ("x",), ("t",), parameters=100), linked("b", ("t",), ("y",)))
    insight = Insight(latency=LatencyProfile(float_ms=FrozenMap({"a": 2.0}), int8_ms=FrozenMap({"a": 1.0})))
    assert costs_of(space, Objectives(), insight).unit == "ms"
    assert costs_of(space, Objectives(), Insight()) == count_costs(space)
    assert costs_of(space, Objectives(), None) == count_costs(space)
    size = Objectives((Objective("size"),))
    assert costs_of(space, size, insight) == size_costs(space)
    assert size_costs(space).extra == {"a": 300.0, "b": 1.0}
    assert costs_of(space, Objectives((Objective("size"), Objective("latency"))), insight).unit == "ms"


def test_float_must_win_clearly_to_be_chosen_for_its_speed():
    space = space_of(*(op(name) for name in "abcd"))
    profile = LatencyProfile(
        float_ms=FrozenMap(dict.fromkeys("abcd", 1.0)),
        int8_ms=FrozenMap({"a": 0.5, "b": 0.99, "c": 1.14, "d": 1.16}),
    )
    assert (
        floats_of(ladder(error_model("abcd", (), dict.fromkeys("abcd", 1.0)), latency_costs(space, profile)))[0] == "d"
    )


def test_an_op_with_a_time_in_int8_only_counts_as_paying():
    space = space_of(*(op(name) for name in "abc"))
    profile = LatencyProfile(
        float_ms=FrozenMap({"a": 1.0, "c": 1.0}), int8_ms=FrozenMap({"a": 0.5, "b": 9.0, "c": 1.5})
    )
    costs = latency_costs(space, profile)
    assert costs.extra["b"] > 0.0 > costs.extra["c"]
    assert floats_of(ladder(error_model("abc", (), dict.fromkeys("abc", 1.0)), costs))[0] == "c"


def test_weights_that_cost_no_measurable_time_are_int8_because_size_is_free_then():
    def cheapest(parameters, int8_ms):
        space = space_of(*(linked(n, (), (), parameters=count) for n, count in zip("abcd", parameters, strict=True)))
        profile = LatencyProfile(
            float_ms=FrozenMap({"a": 10.0, "b": 10.0, "c": 10.0, "d": 0.1}),
            int8_ms=FrozenMap({"a": 3.0, "b": 3.0, "c": 3.0, "d": int8_ms}),
        )
        return floats_of(ladder(error_model("abcd", (), dict.fromkeys("abcd", 1.0)), latency_costs(space, profile)))[0]

    # Float is let off 0.76 ms whatever a group holds (a tenth of a mean group), and 0.3 ms more for half of all weights (1 % of the model's time).
    assert cheapest((0, 0, 0, 0), 0.84) == ""
    assert cheapest((0, 0, 0, 0), 0.95) == "d"
    assert cheapest((300, 300, 300, 900), 0.95) == ""
    assert cheapest((300, 300, 300, 900), 1.5) == "d"


# ladder


def test_without_a_profile_the_ladder_is_the_ranking():
    space = space_of(*(op(name) for name in "abcd"))
    rungs = ladder(error_model("abcd", (), {"a": 1.0, "b": 8.0, "c": 2.0, "d": 4.0}), count_costs(space))
    assert floats_of(rungs) == ["", "b", "b d", "b c d"]
    assert [rung.error for rung in rungs] == [15.0, 7.0, 3.0, 1.0]


def test_groups_around_a_bad_tensor_are_one_step():
    names = "abcdefgh"
    divergence = dict.fromkeys(names, 0.01) | {"c": 5.0, "d": 6.0, "g": 4.0}
    space = space_of(*(op(name) for name in names))
    rungs = ladder(error_model(names, [("c", "d")], divergence), count_costs(space))
    assert floats_of(rungs)[:4] == ["", "g", "c d", "c d g"]
    assert not {"c", "d", "c g", "d g"} & set(floats_of(rungs))


def test_equal_error_falls_back_first_where_it_costs_least():
    model = error_model("abc", (), dict.fromkeys("abc", 1.0))
    rungs = ladder(model, Costs(unit="ms", extra=FrozenMap({"a": 3.0, "b": 1.0, "c": 2.0})))
    assert floats_of(rungs) == ["", "b", "b c"]


def test_ops_that_do_not_pay_are_float_on_the_first_rung_already():
    model = error_model("abcd", (), {"a": 1.0, "b": 8.0, "c": 2.0, "d": 4.0})
    rungs = ladder(model, Costs(unit="ms", extra=FrozenMap({"a": -0.5, "b": 1.0, "c": 1.0, "d": 1.0}), base=4.0))
    assert floats_of(rungs)[:2] == ["a", "a b"]
    assert rungs[0].cost == 3.5


def test_a_region_that_does_not_pay_is_float_as_a_whole_only():
    """b and c lose 0.6 ms each in int8; a border costs 0.2 ms, so either alone in float gains next to nothing."""
    space = space_of(
        linked("a", ("x",), ("t",)),
        linked("b", ("t",), ("u",)),
        linked("c", ("u",), ("v",)),
        linked("d", ("v",), ("y",)),
    )
    profile = LatencyProfile(
        float_ms=FrozenMap({"a": 2.0, "b": 1.0, "c": 1.0, "d": 2.0}),
        int8_ms=FrozenMap({"a": 1.0, "b": 1.6, "c": 1.6, "d": 1.0}),
        border_ms=FrozenMap({"t": 0.2, "u": 0.2, "v": 0.2}),
    )
    model = error_model("abcd", (), dict.fromkeys("abcd", 1.0))
    rungs = ladder(model, latency_costs(space, profile))
    assert floats_of(rungs)[0] == "b c"
    dear = LatencyProfile(
        float_ms=profile.float_ms, int8_ms=profile.int8_ms, border_ms=FrozenMap(dict.fromkeys("tuv", 0.45))
    )
    assert floats_of(ladder(model, latency_costs(space, dear)))[0] == "", "the borders cost more than the region gains"


def test_where_nothing_pays_the_ladder_counts_ops_and_never_ends_in_all_float():
    model = error_model("abc", (), {"a": 1.0, "b": 3.0, "c": 2.0})
    rungs = ladder(model, Costs(unit="ms", extra=FrozenMap(dict.fromkeys("abc", -1.0))))
    assert floats_of(rungs) == ["", "b", "b c"]


def test_all_float_that_is_cheapest_by_a_little_is_doubted():
    space = space_of(*(linked(f"g{place}", (f"t{place}",), (f"t{place + 1}",)) for place in range(4)))
    int8 = {"g0": 1.3, "g1": 1.01, "g2": 1.01, "g3": 1.01}
    slow = FrozenMap({"g0": 1.3, "g1": 1.6, "g2": 1.6, "g3": 1.6})
    flat = FrozenMap(dict.fromkeys(int8, 1.0))
    borders = FrozenMap({"t0": 0.6})
    costs = latency_costs(space, LatencyProfile(float_ms=flat, int8_ms=FrozenMap(int8), border_ms=borders))
    chosen, floats = guiding(int8, costs)
    assert (chosen.unit, floats) == ("ms", {"g0"})
    costs = latency_costs(space, LatencyProfile(float_ms=flat, int8_ms=slow, border_ms=borders))
    chosen, floats = guiding(int8, costs)
    assert (chosen.unit, floats) == ("ops", frozenset())


def test_a_dear_step_offers_to_take_back_what_it_made_needless():
    """`big` costs 10 and takes away 80; with it, the cheap steps before it may be needless."""
    model = error_model(("big", "s1", "s2", "rest"), (), {"big": 80.0, "s1": 10.0, "s2": 9.5, "rest": 1.0})
    rungs = ladder(model, Costs(unit="ms", extra=FrozenMap({"big": 10.0, "s1": 1.0, "s2": 1.0, "rest": 5.0})))
    assert floats_of(rungs) == ["", "s1", "s1 s2", "big", "big s1", "big s1 s2"]


@settings(max_examples=80, deadline=None)
@given(profiled(), st.lists(st.integers(1, 1000).map(float), min_size=6, max_size=6))
def test_rungs_are_on_the_front_and_hold_every_corner_of_its_convex_part(drawn, damages):
    space, profile = drawn
    names = [group.name for group in space.groups]
    if not names:
        return
    model = error_model(names, families(space), dict(zip(names, damages, strict=False)))
    costs = latency_costs(space, profile)
    points = {
        frozenset(floats): (model.predict(floats), costs.predict(floats))
        for count in range(len(names) + 1)
        for floats in itertools.combinations(names, count)
    }
    rungs = ladder(model, costs)
    everything = frozenset(names)
    assert all(rung.floats != everything for rung in rungs)
    assert len({rung.floats for rung in rungs}) == len(rungs)
    if min(points, key=lambda floats: (points[floats][1], len(floats))) == everything:
        return
    for weight in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
        best = min(error * weight + cost for error, cost in points.values())
        ours = min(rung.error * weight + rung.cost for rung in rungs)
        everywhere = points[everything][0] * weight + points[everything][1]
        assert min(ours, everywhere) == pytest.approx(best, abs=1e-6)


def test_errors_fall_and_the_last_rung_has_one_group_in_int8():
    names = [f"c{number}" for number in range(40)]
    model = error_model(names, (), {name: 1.7**place for place, name in enumerate(names)})
    rungs = ladder(model, Costs(unit="ops", extra=FrozenMap(dict.fromkeys(names, 1.0))))
    assert [len(rung.floats) for rung in rungs] == list(range(40))
    assert all(one.error > other.error for one, other in itertools.pairwise(rungs))


def test_an_empty_space_has_no_rung():
    space = TuningSpace.of(Capability(framework="s", runtime_version="1", instruction_set="n", ops=()))
    assert ladder(error_model((), (), {}), count_costs(space)) == ()
