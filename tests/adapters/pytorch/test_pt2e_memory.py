"""Batches are only read, lengths that a graph has fixed are checked, and outputs and buffers belong to whom they should."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from neural_tune.errors import DataError
from neural_tune.protocols import AdapterOptions
from neural_tune.values import FLOAT_CANDIDATE, FrozenMap

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from neural_tune_pytorch import archive  # noqa: E402
from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering, memory  # noqa: E402

ADAPTER = PyTorchAdapter()
needs_compiler = pytest.mark.skipif(bool(lowering.probe().problem), reason="torch.compile finds no C++ compiler here")
RUNS = [pytest.param(True, marks=needs_compiler, id="compiled"), pytest.param(False, id="node by node")]


class Normalising(nn.Module):
    """Normalises its input in place, through a view of it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x.view(-1, 8).sub_(0.5).div_(2.0)
        return self.linear(x)


class Resizing(nn.Module):
    """Comes back to the resolution of its input, which torch.export writes into the graph."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return F.interpolate(self.conv(x), size=x.shape[-2:], mode="nearest")


class Constant(nn.Module):
    """Two of its outputs depend on no input, one on the batch size only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("k", torch.arange(5.0))

    def forward(self, x):
        return self.linear(x), self.k * 2 + 1, self.k, torch.arange(x.shape[0])


class Counting(nn.Module):
    """Multiplies with the number of calls."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.linear(x) * self.calls


class ByBatch(nn.Module):
    """Another function for every batch size, so that only the one of the example is in the graph."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x) / int(x.shape[0])


def held(module, example, *, compiles=False, backend="pt2e"):
    options = AdapterOptions(example=example, backend=backend, extra=FrozenMap({"compile": compiles}))
    return ADAPTER.load(module.eval(), options)


def built(module, example, **how):
    return ADAPTER.build(held(module, example, **how), FLOAT_CANDIDATE, None, 1)


@pytest.mark.parametrize("compiles", RUNS)
def test_a_model_that_changes_its_input_answers_right_at_every_call_and_the_batch_stays(compiles, tmp_path):
    module, generator = Normalising().eval(), np.random.default_rng(0)
    example = generator.normal(size=(4, 8)).astype(np.float32)
    before = example.copy()
    made = built(module, example, compiles=compiles)
    np.testing.assert_array_equal(example, before)
    for network in (made, ADAPTER.restore(ADAPTER.save(made, tmp_path), 1)):
        for rows in (4, 4, 3, 3):
            batch = generator.normal(size=(rows, 8)).astype(np.float32)
            given = batch.copy()
            expected = module(torch.from_numpy(batch.copy())).detach().numpy()
            np.testing.assert_allclose(ADAPTER.run(network, given)[0], expected, atol=1e-5)
            np.testing.assert_allclose(ADAPTER.native(network)(torch.from_numpy(given)), expected, atol=1e-5)
            np.testing.assert_array_equal(given, batch)


@pytest.mark.parametrize("backend", ["fx", "eager"])
def test_other_backends_give_a_model_that_changes_its_input_a_copy(backend, tmp_path):
    module, batch = Normalising().eval(), torch.randn(4, 8)
    expected, before = module(batch.clone()).detach(), batch.clone()
    made = built(module, batch.clone(), backend=backend)
    for network in (made, ADAPTER.restore(ADAPTER.save(made, tmp_path), 1)):
        torch.testing.assert_close(ADAPTER.native(network)(batch), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(batch, before)


def test_a_graph_of_an_old_file_that_writes_to_its_input_gets_a_copy_of_that_one_only():
    class Two(nn.Module):
        def forward(self, x, y):
            return x.view(-1).mul_(2).sum() + torch.relu_(y * 3)

    example = (torch.randn(3), torch.randn(3))
    graph = torch.export.export(Two(), example, strict=False).module(check_guards=False)
    assert {node.name for node in memory.written(graph.graph)} == {"x"}
    memory.with_own_inputs(graph)
    given = tuple(tensor.clone() for tensor in example)
    torch.testing.assert_close(graph(*given), Two()(*(tensor.clone() for tensor in example)))
    assert all(map(torch.equal, given, example))
    assert len([node for node in graph.graph.nodes if node.target is torch.ops.aten.clone.default]) == 1


@needs_compiler
def test_trial_runs_of_compiled_code_do_not_touch_the_batch():
    """Inductor's code is tried once after a compile; a graph that writes to its input must not have written twice by then."""
    graph = torch.fx.symbolic_trace(Normalising().eval())
    batch = torch.randn(4, 8)
    expected = graph(batch.clone()).detach()
    graph.graph.output_node().args = ((graph.graph.output_node().args[0],),)
    graph.recompile()
    torch.testing.assert_close(lowering.Compiled(graph, pads=False)(batch)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_model_that_changes_no_input_is_given_the_batch_itself():
    graph = held(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)), torch.randn(4, 8)).captured.graph.graph
    assert not [node for node in graph.nodes if node.target is torch.ops.aten.clone.default]
    assert memory.constant_outputs(graph) == ()


@pytest.mark.parametrize("compiles", RUNS)
def test_a_length_that_the_graph_fixed_is_checked_wherever_the_model_comes_from(compiles, tmp_path):
    example, other = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 24)
    hold = held(Resizing(), example, compiles=compiles)
    made = ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1)
    restored = ADAPTER.restore(ADAPTER.save(made, tmp_path), 1)
    for network in (made, restored, ADAPTER.simulate(hold, FLOAT_CANDIDATE, None, 1)):
        for call in (ADAPTER.native(network), lambda batch, network=network: ADAPTER.run(network, batch)):
            with pytest.raises(DataError, match=r"'x'.*length 24 along axis 3, expected 16"):
                call(other)
            assert call(torch.randn(5, 3, 16, 16)) is not None
    with pytest.raises(DataError, match="along axis 3, expected 16"):
        ADAPTER.calibrate(hold, [other], tmp_path)


def test_token_ids_keep_their_length_free():
    module = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    made = built(module, torch.zeros(2, 6, dtype=torch.int64))
    assert ADAPTER.native(made)(torch.ones(3, 9, dtype=torch.int64)).shape == (3, 9, 2)


def test_a_file_that_says_nothing_of_its_axes_is_checked_by_its_graph(tmp_path, monkeypatch):
    to_json = archive.Calling.to_json

    def old(calling):
        data = to_json(calling)
        return {
            **data,
            "inputs": [{name: item[name] for name in ("name", "dtype", "shape")} for item in data["inputs"]],
        }

    monkeypatch.setattr(archive.Calling, "to_json", old)
    artifact = ADAPTER.save(built(Resizing(), torch.randn(2, 3, 16, 16)), tmp_path)
    with zipfile.ZipFile(artifact) as packed:
        (name,) = [item for item in packed.namelist() if item.endswith(archive.METADATA)]
        assert "fixed" not in json.loads(packed.read(name))["calling"]["inputs"][0]
    restored = ADAPTER.restore(artifact, 1)
    assert ADAPTER.run(restored, torch.randn(4, 3, 16, 16))[0].shape == (4, 4, 16, 16)
    with pytest.raises(DataError, match="along axis 2, expected 16"):
        ADAPTER.run(restored, torch.randn(2, 3, 20, 16))


@pytest.mark.parametrize("compiles", RUNS)
def test_outputs_that_depend_on_no_input_are_the_callers(compiles):
    module, batch = Constant().eval(), torch.randn(4, 8)
    native = ADAPTER.native(built(module, batch, compiles=compiles))
    for _ in range(3):
        found = native(batch)
        for one, two in zip(found, module(batch), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
        for item in found:
            item.add_(100)


@pytest.mark.parametrize("compiles", RUNS)
def test_only_calls_of_the_user_count_for_a_model_with_a_state(compiles):
    module, batch = Counting(), torch.randn(4, 8)
    hold = held(module, batch, compiles=compiles)
    assert any("its own buffers" in note and "calls" in note for note in ADAPTER.query(hold).notes)
    native = ADAPTER.native(ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1))
    for count in (1, 2, 3):
        torch.testing.assert_close(native(batch), module.linear(batch) * count, atol=1e-5, rtol=1e-4)


def test_a_batch_axis_that_a_guard_ties_to_one_number_is_not_free():
    module, batch = ByBatch(), torch.randn(4, 8)
    hold = held(module, batch)
    assert not hold.captured.has_free_batch
    made = ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1)
    torch.testing.assert_close(ADAPTER.native(made)(batch), module(batch), atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match="length 2 along axis 0, expected 4"):
        ADAPTER.run(made, batch[:2])
