"""What the report page is told of the ranges: every tensor on a grid, the ops that read it, and the codes of the very network."""

from __future__ import annotations

import pytest

from neural_tune.protocols import AdapterOptions, ShowsRanges
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap, Observer, TensorRange

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402

ADAPTER = PyTorchAdapter()
WRITERS = ("quantize_per_tensor", "quantize_per_tensor.default", "add_relu", "add")


def grids_of(built):
    """Return the (scale, zero_point) of every grid of a network that runs op by op, read off its modules and its nodes."""
    network = getattr(built.network, "graph", built.network)  # pt2e holds a graph module, the others are modules
    module = network if isinstance(network, torch.nn.Module) else built.network
    found = {
        (part.scale, part.zero_point)
        for part in module.modules()
        if hasattr(part, "zero_point") and getattr(part, "has_grid", True)
    }
    for node in getattr(getattr(module, "graph", None), "nodes", ()):
        name = getattr(node.target, "__name__", "")
        if node.op == "call_function" and name in WRITERS:
            numbers = [item for item in node.args if isinstance(item, int | float)]
            found |= {tuple(numbers[:2])} if len(numbers) > 1 else set()
    return found


@pytest.fixture(params=["pt2e", "fx", "eager"])
def tuned(request, networks, tmp_path):
    batches = networks.images(4, batches=3)
    extra = FrozenMap({"compile": False} if request.param == "pt2e" else {})
    hold = ADAPTER.load(networks.small(), AdapterOptions(backend=request.param, example=batches[0], extra=extra))
    return (
        hold,
        TuningSpace.of(ADAPTER.query(hold)).preferred(),
        ADAPTER.calibrate(hold, batches, tmp_path / "statistics"),
    )


def test_every_grid_of_the_network_is_shown_with_what_calibration_saw(tuned):
    hold, full, statistics = tuned
    assert isinstance(ADAPTER, ShowsRanges)
    for ops in (full.ops, {name: full.ops[name] for name in list(full.ops)[1::2]}):
        candidate = Candidate.of(ops)
        shown = ADAPTER.ranges(hold, candidate, statistics)
        expected = grids_of(ADAPTER.build(hold, candidate, statistics, 1))
        steps = sorted({round((seen.high - seen.low) / 255, 9) for seen in shown})
        assert steps == pytest.approx(sorted({round(scale, 9) for scale, _ in expected}), rel=1e-6)
        assert {name for seen in shown for name in seen.ops} == set(ops)
        for seen in shown:
            assert seen.observer == "minmax"
            assert sum(seen.counts) == statistics.of(seen.tensor).histogram.count
            # The zero point is rounded, so that an end may move by half a step; a range that does not hold zero is widened to it.
            half = (seen.high - seen.low) / 255 * 0.51
            assert seen.low == pytest.approx(min(seen.minimum, 0.0), abs=half)
            assert seen.high == pytest.approx(seen.maximum, abs=half)


def test_a_range_that_was_chosen_for_a_tensor_is_the_one_that_is_shown(tuned):
    hold, full, statistics = tuned
    plain = ADAPTER.ranges(hold, full, statistics)
    choice = TensorRange(tensor=plain[0].tensor, observer=Observer.PERCENTILE, percentile=90.0)
    moved = ADAPTER.ranges(hold, Candidate.of(full.ops, (choice,)), statistics)
    assert moved[1:] == plain[1:]
    assert moved[0].observer == "percentile"
    assert plain[0].low < moved[0].low < moved[0].high < plain[0].high


def test_the_float_model_has_no_range(tuned):
    hold, _, statistics = tuned
    assert ADAPTER.ranges(hold, FLOAT_CANDIDATE, statistics) == ()
