"""The minimum cut against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune_strategies.auto.cut import Labelling

NODES = tuple("abcde")
COST = st.integers(0, 20).map(float)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({node: st.tuples(COST, COST) for node in NODES}),
    st.dictionaries(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), COST, max_size=10),
    st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), max_size=3),
    st.sets(st.sampled_from(NODES), max_size=1),
)
def test_it_finds_the_cheapest_labelling_with_the_fewest_floats(single, pairs, forbidden, fixed):
    pairs = {pair: cost for pair, cost in pairs.items() if pair[0] != pair[1]}

    def cost(floats):
        if any(one not in floats and other in floats for one, other in forbidden):
            return float("inf")
        own = sum(single[node][0] if node in floats else single[node][1] for node in NODES)
        return own + sum(charge for (one, other), charge in pairs.items() if one not in floats and other in floats)

    labels = Labelling(int8=frozenset(), floats=frozenset(fixed))
    for node, (if_float, if_int8) in single.items():
        labels.prefer(node, if_float=if_float, if_int8=if_int8)
    for (one, other), charge in pairs.items():
        labels.charge(one, other, charge)
    for one, other in forbidden:
        labels.charge(one, other, None)
    found = labels.solve() | fixed
    every = [
        frozenset(chosen) | fixed for count in range(len(NODES) + 1) for chosen in itertools.combinations(NODES, count)
    ]
    best = min(map(cost, every))
    assert cost(found) == best
    assert len(found) == min(len(floats) for floats in every if cost(floats) == best)


def test_without_costs_everything_is_int8():
    labels = Labelling(int8=frozenset(), floats=frozenset())
    labels.prefer("a", if_float=0.0, if_int8=0.0)
    assert labels.solve() == frozenset()
