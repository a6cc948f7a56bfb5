"""The runtime's own quantization tests, file by file: where each stands here, and those that stand nowhere else.

| onnxruntime/test/python/quantization | here |
|---|---|
| op_test_utils | graphs.py; test_patterns.py::test_pattern_runs_in_the_kernels_it_should_and_stays_near_float |
| test_op_matmul, test_op_gemm | test_op_matrix.py::test_cell_equals_the_stock_tool; test_traps.py::test_gemm_factors_are_honoured; test_dynamic.py::test_products_equal_the_stock_tool_bit_for_bit |
| test_op_conv_transpose, test_op_relu, test_op_instance_normalization, test_op_topk, test_op_argmax | test_patterns.py::test_pattern_runs_in_the_kernels_it_should_and_stays_near_float |
| test_op_maxpool, test_op_pooling, test_op_gavgpool, test_op_concat, test_op_pad, test_op_resize, test_op_reshape, test_op_transpose, test_op_split, test_op_where, test_op_softmax, test_op_squeeze_unsqueeze, test_op_gather_elems, test_op_slice, test_op_flatten | test_op_matrix.py::test_cell_equals_the_stock_tool; test_op_matrix.py::test_cell_is_within_one_step_of_float64_in_both_static_formats |
| test_op_lstm | test_dynamic.py::test_lstm_equals_the_stock_tool_bit_for_bit |
| test_op_attention, test_op_embed_layernorm, test_op_bias_gelu, test_op_skip_layer_norm | test_stock_suite.py::test_fused_op_stays_float_and_the_product_behind_it_equals_the_stock_tool |
| test_conv_dynamic | test_dynamic.py::test_convolutions_are_dynamic_only_where_a_rule_asks_and_equal_the_stock_tool |
| test_qdq: dedicated pairs, excluded outputs, bias | test_rewrite_regions.py::test_tensor_of_a_float_op_is_coded_for_its_int8_readers_only; test_oracle_static.py::test_float_outputs_of_products_equal_the_stock_tool_without_output_quantization; test_traps.py::test_bias_shared_by_two_convolutions_is_quantized_for_each |
| test_qdq_block_size | test_stock_suite.py::test_static_op_takes_no_blocks_and_says_so; test_weight_only.py::test_products_compute_with_the_rounded_weights |
| test_tensor_quant_overrides_option | test_ranges.py::test_a_choice_for_what_a_convolution_writes_is_told_of_the_tensor_behind_its_relu; test_rewrite_regions.py::test_op_that_shares_an_input_of_another_format_says_so |
| test_symmetric_flag | test_patterns.py::test_symmetric_flag_puts_zero_in_the_middle_and_keeps_the_relu |
| test_calibration | test_calibrate.py::test_statistics_are_those_of_all_activations_at_once |
| test_quantize_static, test_quantize_static_resnet | test_oracle_static.py::test_full_int8_equals_the_stock_tool_bit_for_bit; test_oracle_models.py::test_full_int8_equals_the_stock_tool_and_keeps_the_accuracy |
| test_quant_issues | test_patterns.py::test_pattern_runs_in_the_kernels_it_should_and_stays_near_float |
| test_subgraph | test_stock_suite.py::test_table_that_a_branch_reads_stays_float_for_the_branch; test_traps.py::test_tensor_captured_by_a_subgraph_keeps_its_name_and_the_subgraph_stays_float |
| test_quantizer_shape_inference, test_quant_preprocess | test_normalise.py::test_contrib_ops_get_their_shapes_from_a_later_step_of_the_ladder; test_normalise.py::test_ladder_goes_on_when_a_step_breaks_and_says_what_is_missing |
| test_qoperator_adjust_int32_bias | test_traps.py::test_bias_too_large_for_int32_widens_the_weight_scale; test_dispatch.py::test_bias_too_large_for_int32_widens_the_scale_of_shifted_weights_too |
| test_op_matmul_4bits, test_op_matmul_8bits, test_quantizeblockwise_4bits, test_quantize_weight_only | test_weight_only.py::test_rounding_to_nearest_equals_the_stock_tool_bit_for_bit; test_weight_only.py::test_packing_and_unpacking_are_inverse; test_weight_only.py::test_table_in_blocks_of_four_bits_equals_the_stock_tool |
| test_op_matmul_2bits | test_stock_suite.py::test_two_bits_are_refused_with_what_there_is |
| test_smoothquant | test_recipe_smoothquant.py::test_outlier_channels_vanish_and_the_function_stays |
| test_qdq_loss_debug | test_toggles.py::test_every_op_alone_is_what_a_built_candidate_computes |
| test_fp16_converter | test_casts.py::test_cast_ops_compute_in_fp16_between_float_neighbours |

Not taken over: formats of other providers (test_op_matmul_bnb4, test_op_matmulfpq4, *_cuda, *_qnn), which the CPU does not run.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import ast
import re
from dataclasses import replace
from pathlib import Path

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, FLOAT, graph_of, options, weights
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from neural_tune.config import parse_rules
from neural_tune.errors import CapabilityError, ConfigError
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, Granularity

# The stock tool copies its input through the old converter of onnx, and that warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

INT32, INT64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64
ONES = np.ones(32, np.float32)


def test_every_row_of_the_table_names_tests_that_exist():
    folder = Path(__file__).parent
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", __doc__)
    assert len(named) > 30
    for file, test in named:
        parsed = ast.parse((folder / file).read_text(encoding="utf-8"))
        assert test in {item.name for item in parsed.body if isinstance(item, ast.FunctionDef)}, f"{file}::{test}"


def fused(kind, inputs, constants, shapes, **attributes):
    """A fused op of the runtime's own domain, called "op", and a product behind it."""
    nodes = [
        helper.make_node(
            kind,
            inputs,
            ["e", "unread"] if kind.startswith("Embed") else ["e"],
            "op",
            domain="com.microsoft",
            **attributes,
        ),
        helper.make_node("MatMul", ["e", "m"], ["y"], "out"),
    ]
    model = graph_of(nodes, constants | weights(4, m=(32, 8)), shapes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def embedding():
    tables = weights(2, words=(300, 32), places=(16, 32), parts=(2, 32)) | {"g": ONES, "b": 0 * ONES}
    model = fused("EmbedLayerNormalization", ["i", "s", "words", "places", "parts", "g", "b"], tables, {})
    model.graph.input.extend(helper.make_tensor_value_info(name, INT32, ["n", 5]) for name in "is")
    return model


X = {"x": ["n", 5, 32]}
FUSED = {
    "Attention": fused("Attention", ["x", "w", "b"], weights(w=(32, 96), b=(96,)), X, num_heads=4),
    "EmbedLayerNormalization": embedding(),
    "SkipLayerNormalization": fused("SkipLayerNormalization", ["x", "x", "g", "b"], {"g": ONES, "b": 0 * ONES}, X),
    "BiasGelu": fused("BiasGelu", ["x", "b"], weights(b=(32,)), X),
}


def feed_of(model):
    rng = np.random.default_rng(3)
    if model.graph.input[0].name == "x":
        return {"x": rng.standard_normal((4, 5, 32)).astype(np.float32)}
    return {"i": rng.integers(0, 300, (4, 5)).astype(np.int32), "s": rng.integers(0, 2, (4, 5)).astype(np.int32)}


@pytest.mark.parametrize("approach", ["static", "dynamic", "weight_only", "auto"])
@pytest.mark.parametrize("kind", sorted(FUSED))
def test_fused_op_stays_float_and_the_product_behind_it_equals_the_stock_tool(kind, approach, tmp_path):
    model, feed = FUSED[kind], feed_of(FUSED[kind])
    hold = ADAPTER.load(model, options(approach=approach, reduce_range=False))
    known = {op.name: op for op in ADAPTER.query(hold).ops}
    assert len(known["op"].choices) == 1
    assert known["op"].why
    statistics = ADAPTER.calibrate(hold, [feed], tmp_path / "statistics")
    built = ADAPTER.build(hold, TuningSpace.of(ADAPTER.query(hold)).preferred(), statistics, 1)
    assert [op.name for op in built.report.ops if not op.is_float] == ["out"]
    (found,), (expected,) = ADAPTER.run(built, feed), graphs.run(model, feed)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    if approach == "dynamic":
        source = ADAPTER.save(ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1), tmp_path / "normalised")
        kept = {"op_types_to_quantize": ["MatMul"], "extra_options": {"DefaultTensorType": FLOAT}}
        quantize_dynamic(
            str(source), str(tmp_path / "stock.onnx"), per_channel=True, weight_type=QuantType.QInt8, **kept
        )
        np.testing.assert_array_equal(found, graphs.run(tmp_path / "stock.onnx", feed)[0])


@pytest.mark.parametrize("net", ["conv", "perceptron"])
def test_static_op_takes_no_blocks_and_says_so(net, tmp_path):
    """The stock tool writes DequantizeLinear with `block_size`, which the runtime does not fuse: float kernels with conversions around."""
    model = graphs.NETS[net]()
    tuned = graphs.Tuned(model, graphs.batches(model), tmp_path)
    name, config = next(iter(tuned.space.preferred().ops.items()))
    blocks = replace(config.weight, granularity=Granularity.PER_GROUP, group_size=32)
    with pytest.raises(CapabilityError, match="static kernels take no groups"):
        tuned.build(Candidate.of({name: replace(config, weight=blocks)}))


def test_two_bits_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="int4"):
        parse_rules(op_type={"MatMul": {"weight": {"dtype": "int2"}}})


def test_table_that_a_branch_reads_stays_float_for_the_branch(tmp_path):
    """A decoder that was exported once with and once without a cache: both branches read the table of the outer graph."""

    def branch(name, sign):
        nodes = [
            helper.make_node("Gather", ["table", "i"], [f"{name}_rows"]),
            helper.make_node(sign, [f"{name}_rows"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    nodes = [
        helper.make_node("Gather", ["table", "i"], ["e"], "embed"),
        helper.make_node("If", ["yes"], ["h"], "which", then_branch=branch("t", "Neg"), else_branch=branch("f", "Abs")),
        helper.make_node("Add", ["e", "h"], ["s"], "sum"),
        helper.make_node("MatMul", ["s", "m"], ["y"], "out"),
    ]
    model = graph_of(nodes, weights(1, table=(300, 32), m=(32, 8)), {})
    model.graph.input.append(helper.make_tensor_value_info("i", INT64, ["n", 5]))
    model.graph.input.append(helper.make_tensor_value_info("yes", onnx.TensorProto.BOOL, []))
    hold = ADAPTER.load(model, options(approach="dynamic"))
    built = ADAPTER.build(hold, TuningSpace.of(ADAPTER.query(hold)).preferred(), None, 1)
    outcomes = {op.name: op for op in built.report.ops}
    assert not outcomes["embed"].is_float
    assert outcomes["which"].is_float
    assert "subgraphs" in outcomes["which"].reason
    path = ADAPTER.save(built, tmp_path)
    onnx.checker.check_model(onnx.load(str(path)))
    for yes in (True, False):
        feed = {"i": np.arange(10).reshape(2, 5), "yes": np.array(yes)}
        (found,), (expected,) = graphs.run(path, feed), graphs.run(model, feed)
        # One branch subtracts the rows from themselves: what is left there is their rounding, so the other branch gives the measure.
        size = np.linalg.norm(graphs.run(model, feed | {"yes": np.array(False)})[0])
        assert np.linalg.norm(found - expected) < 0.03 * size
