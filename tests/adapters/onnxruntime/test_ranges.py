"""What the report page is told of the ranges: the observer that really made each of them, and the codes of the very graph."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import onnx
from graphs import ADAPTER, Tuned

from neural_tune.values import Candidate, Observer, TensorRange
from neural_tune_onnxruntime.model import OnnxModel


def scales_of(proto: onnx.ModelProto, held: OnnxModel) -> dict[str, float]:
    """Return tensor -> scale, from the initializers of a written graph."""
    suffix = f"{held.mark}scale"
    return {
        item.name.removesuffix(suffix): float(onnx.numpy_helper.to_array(item))
        for item in proto.graph.initializer
        if item.name.endswith(suffix) and not item.dims
    }


def test_a_choice_for_what_a_convolution_writes_is_told_of_the_tensor_behind_its_relu(tmp_path):
    source = graphs.conv_net()
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    graph = tuned.hold.graph
    conv = next(
        op for op in graph.ops if op.type == "Conv" and (f := graph.sole_consumer(op.outputs[0])) and f.type == "Relu"
    )
    behind = graph.sole_consumer(conv.outputs[0]).outputs[0]
    full = tuned.space.preferred()
    candidate = Candidate.of(
        full.ops, (TensorRange(tensor=conv.outputs[0], observer=Observer.PERCENTILE, percentile=99.0),), ()
    )
    plain, moved = (
        {seen.tensor: seen for seen in ADAPTER.ranges(tuned.hold, wanted, tuned.statistics)}
        for wanted in (full, candidate)
    )
    assert plain[behind].observer == "minmax"
    assert moved[behind].observer == "percentile"
    assert moved[behind].high < plain[behind].high
    built = ADAPTER.build(tuned.hold, candidate, tuned.statistics, 1)
    scales = scales_of(built.proto, tuned.hold)
    for tensor, seen in moved.items():
        assert seen.high - seen.low == pytest.approx(255 * scales[tensor], rel=1e-6)
