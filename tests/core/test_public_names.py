from __future__ import annotations

import pytest

import neural_tune


def test_every_public_name_is_there_and_documented() -> None:
    for name in neural_tune.__all__:
        assert getattr(neural_tune, name).__doc__, name


def test_the_lazy_table_and_the_public_list_are_the_same() -> None:
    assert sorted(neural_tune._HOME_OF) == sorted(neural_tune.__all__)
    assert set(neural_tune.__all__) <= set(dir(neural_tune))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        neural_tune.fitt


def test_incs_import_path_gives_the_same_fit() -> None:
    from neural_tune.quantization import fit

    assert fit is neural_tune.fit
