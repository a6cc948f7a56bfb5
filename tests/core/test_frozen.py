"""FrozenMap is a hashable mapping that nobody can change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune.values import FrozenMap

dicts = st.dictionaries(st.text(max_size=4), st.integers(), max_size=5)


@given(dicts)
def test_it_equals_the_mapping_it_was_made_of_ordered_by_name(items):
    frozen = FrozenMap(items)
    assert frozen == items
    assert items == frozen
    assert dict(frozen) == items
    assert list(frozen) == sorted(items)
    assert len(frozen) == len(items)


@given(dicts, dicts)
def test_equal_maps_have_equal_hashes_and_different_ones_differ(one, other):
    assert hash(FrozenMap(one)) == hash(FrozenMap(reversed(list(one.items()))))
    assert (FrozenMap(one) == FrozenMap(other)) == (one == other)
    assert (FrozenMap(one) != other) == (one != other)


def test_it_is_not_equal_to_other_things():
    assert FrozenMap() != []
    assert FrozenMap({"a": 1}) != {"a": 1, "b": 2}
    assert FrozenMap({"a": 1}) != FrozenMap({"a": 2})


def test_it_cannot_be_changed_and_does_not_follow_its_source():
    source = {"a": 1}
    frozen = FrozenMap(source)
    source["a"] = 2
    assert frozen["a"] == 1
    with pytest.raises(TypeError):
        frozen["a"] = 3
    with pytest.raises(KeyError):
        frozen["b"]
    with pytest.raises(AttributeError):
        frozen.other = 1


def test_a_later_duplicate_wins_as_in_dict():
    assert FrozenMap([("a", 1), ("a", 2)]) == {"a": 2}


def test_a_map_of_unhashable_values_has_no_hash():
    with pytest.raises(TypeError, match="unhashable"):
        hash(FrozenMap({"a": []}))


def test_repr_shows_the_items():
    assert repr(FrozenMap({"b": 1, "a": 2})) == "FrozenMap({'a': 2, 'b': 1})"
