"""The PyTorch adapter keeps the adapter protocol: on the Q/DQ graph run node by node (every sentence), and compiled (see test_lowering)."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from torch_kits import Convolutions, TwoInputs

from neural_tune.values import FrozenMap

NODE_BY_NODE = FrozenMap({"compile": False})


class TestConvolutions(Convolutions):
    extra = NODE_BY_NODE


class TestTwoInputs(TwoInputs):
    extra = NODE_BY_NODE
