"""Fixtures of the PyTorch adapter's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# Lets the tests of this folder import torch_kits.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def networks():
    """The module networks.py of this folder."""
    pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
    name = "neural_tune_tests_pytorch_networks"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("networks.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Torch computes with one thread: two that wait for each other on a busy machine are ten times slower than one."""
    torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
