"""FX and eager mode keep the adapter protocol: every sentence, on the kernels that run."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')

from torch_kits import Convolutions, TwoInputs


class TestFxConvolutions(Convolutions):
    backend = "fx"


class TestFxTwoInputs(TwoInputs):
    backend = "fx"


class TestEager(Convolutions):
    """Islands of int8."""

    backend = "eager"
