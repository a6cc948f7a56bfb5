"""The cases of Intel Neural Compressor's TensorFlow tests, by name, written anew: graph in, node types and numbers out.

Names are "file: case" without "test_tensorflow_" and "test_"; `FUSED` holds those of its test/tfnewapi, `FROZEN` those of test/adaptor/tensorflow_adaptor
(whose fusion files repeat the same graphs for an older set of ops; they stand in `FUSED` only). Graphs and sizes are our own. What its own build of TensorFlow
fused and stock TensorFlow has no kernel for (Conv3D, batch norm, average pooling, LeakyRelu behind a convolution) is float here, with the reason where
it is an op of its own.

| file of theirs | here |
|---|---|
| graph_biasadd_add_fusion, graph_conv_fusion, graph_conv_requantize_fusion, graph_depthwiseconv_fusion, graph_fuse_gelu_newapi, graph_fuse_pad_conv_fp32, fuse_reshape_transpose | `FUSED` |
| graph_qdq_bn_fusion, graph_qdq_concat_fusion, graph_qdq_conv3d_fusion, graph_qdq_conv_fusion, graph_qdq_depthwiseconv_fusion, graph_qdq_matmul_fusion, graph_qdq_new_conv_fusion, graph_qdq_pooling_fusion | `FUSED` |
| graph_dequantize_cast_optimizer_newapi, graph_dq_cast_fusion | `FUSED`, and bf16 as a whole in test_bf16.py |
| smooth_quant_newapi, bias_correction | recipes that the onednn backend refuses: `test_recipes_of_theirs_are_refused_by_name` |
| big_saved_model | `test_a_graph_above_two_gigabytes_is_refused` |
| itex_qdq | Q/DQ graphs for Intel's plug-in, which ends at TensorFlow 2.15: `test_the_form_for_their_plugin_is_refused` |
| spr_base_distributed_metrics, _pruning, _tf_dataloader | Horovod training loops, no graphs: not here |

| file of theirs in test/adaptor/tensorflow_adaptor | here |
|---|---|
| graph_cac, graph_concat, graph_conv_add_relu_fusion, graph_conv_fusion, graph_dequantize_cast_optimizer, graph_fuse_gelu, graph_matmul_fusion | the same graphs as of test/tfnewapi, for an older set of ops: `FUSED` |
| graph_column_wise_mul, graph_conv_as_output, graph_conv_math, graph_convert_layout, convert_layout, graph_convert_leakyrelu, graph_cse_optimization, graph_expanddims_optimizer, graph_fetch_weight_from_reshape | `FROZEN` |
| fold_batch_norm, graph_fold_bn, graph_fuse_decomposed_bn, fold_const, graph_library_detection, grappler_pass, graph_meta_pass, graph_pad_conv, graph_post_cse_optimize, move_squeeze_after_relu | `FROZEN` (fold_batch_norm is graph_fold_bn, grappler_pass is fold_const and library_detection) |
| quantize_input, remove_training_nodes, rnn, share_nodes_graph, strip_equivalent_nodes | `FROZEN` |
| graph_switch_optimizer | `FROZEN`; theirs cuts the Switch out, here it stays; a product in the branch that never runs is not supported |
| graph_convert_nan | `test_weights_that_are_not_finite_are_named` |
| graph_input_output, get_output_tensor, graph_util, tf_util, get_estimator_graph | how a graph's ends are found: test_inputs.py; estimators ended with TensorFlow 2.15 |
| bf16_convert | test_bf16.py |
| smooth_quant_tf, bias_correction | `test_recipes_of_theirs_are_refused_by_name` |
| itex_basic, gpu | for Intel's plug-in: `test_the_form_for_their_plugin_is_refused` |
| calculate_op_sensitivity, inspect_tensor, inspect_tensor_in_mse_tuning, set_tensor, graph_dump_tensor, tensorboard | values of single tensors for the strategies: toggles and probes, in test_conformance.py |
| query_yaml, graph_search_patterns | their tables of ops and patterns: what is offered comes from the kernels, test_conformance.py and test_rewrite.py |
| data_pipline, graph_insert_logging, graph_debug_mode | their data sets and their print nodes: no graphs of ours |
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import (
    BIAS,
    CONV,
    DEPTH,
    K1,
    K3,
    LONG,
    PRODUCT,
    ROWS,
    SLIM,
    SQUARE,
    Case,
    check,
    conv,
    norm,
    normal,
    pad,
)
from models import ADAPTER, full, graph_of, hold_of, small_cnn

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.values import Candidate
from neural_tune_tensorflow import save
from neural_tune_tensorflow.runtime import tf

VOLUME, WIDE = (None, 4, 6, 6, 4), (None, 2, 4, 6)
CUBE, MIXED, PLANE = normal(3, 3, 3, 4, 4), normal(4, 4), normal(1, 2, 6, 5)
DEQUANTIZED = ("BiasAdd Dequantize",)
NO_BATCH_NORM = (("Relu", "no int8 kernel"),)


def slim(x: Any, stride: int = 1, padding: str = "SAME") -> Any:
    return tf.nn.depthwise_conv2d(x, DEPTH, [1, stride, stride, 1], padding)


def dense(x: Any) -> Any:
    return tf.nn.bias_add(x @ SQUARE, LONG)


def training_norm(x: Any) -> Any:
    ones = np.ones(8, np.float32)
    return tf.compat.v1.nn.fused_batch_norm(x, ones * 1.3, BIAS, is_training=True)[0]


def dilated(x: Any) -> Any:
    apart = tf.space_to_batch_nd(x, [2, 2], [[2, 2], [2, 2]])
    return tf.nn.relu(tf.compat.v1.batch_to_space_nd(conv(apart, padding="VALID"), [2, 2], [[0, 0], [0, 0]]) + BIAS)


def switched(x: Any) -> Any:
    """A training flag as TensorFlow 1 wrote it."""
    inference, training = tf.raw_ops.Switch(data=x, pred=tf.constant(False))
    return conv(tf.raw_ops.Merge(inputs=[tf.nn.relu(inference), tf.nn.relu6(training) * 9.0])[0])


def in_a_function(x: Any) -> Any:
    @tf.function
    def swish(y: Any) -> Any:
        return y * tf.nn.sigmoid(y)

    return swish(norm(conv(pad(x), padding="VALID")))


def hard_swish(y: Any) -> Any:
    return y * tf.nn.relu6(y + 3.0) * np.float32(1 / 6)


def volume(x: Any, end: Any = lambda y: y) -> Any:
    return end(tf.nn.conv3d(x, CUBE, [1, 1, 1, 1, 1], "SAME"))[:, 0, :, :, :] @ MIXED


def float_volume(end: Any, *others: str) -> Case:
    """Conv3D and what follows it stay float; the product behind them does not."""
    holds = {"Conv3D": 1, PRODUCT: 1, **dict.fromkeys(others, 1)}
    return Case(lambda x: volume(x, end), holds, (), VOLUME, (("Conv3D", "no int8 kernel"),))


def product(build: Any, fused: str, lacks: tuple[str, ...] = (), shape: Any = ROWS) -> Case:
    """One matrix product, which does `fused` besides."""
    return Case(build, {PRODUCT: 1, "QuantizeV2": 1}, ("MatMul", "BiasAdd", *lacks), shape, fused=(fused,))


def activated(function: Any, kind: str, *, bias: bool) -> Case:
    """A product with an activation; one without a bias gets a bias of zeros."""
    build = (lambda x: function(dense(x))) if bias else (lambda x: function(x @ SQUARE))
    return product(build, f"BiasAdd {kind} Dequantize", (kind, "Mul", "Erfc"))


FUSED: dict[str, Case] = {
    "graph_biasadd_add_fusion: conv_biasadd_add_relu_fusion": Case(
        lambda x: tf.nn.relu6(conv(x) + BIAS + 3.0) * 0.1 * 0.8, {CONV: 1, "Mul": 2}, ("AddV2", "BiasAdd", "Relu6")
    ),
    "graph_biasadd_add_fusion: conv_biasadd_add_relu_no_fusion": Case(  # folded here, whatever the shape of the constant
        lambda x: tf.nn.relu6(tf.nn.bias_add(conv(x), BIAS) + BIAS), {CONV: 1}, ("AddV2", "BiasAdd", "Relu6")
    ),
    "graph_conv_fusion: conv_single_fusion": Case(
        lambda x: tf.nn.leaky_relu(conv(tf.matmul(conv(pad(x), stride=2, padding="VALID"), normal(8, 8)[None, None]))),
        {CONV: 2, PRODUCT: 1, "LeakyRelu": 1, "QuantizeV2": 1, "Dequantize": 1},
        ("Pad", "BatchMatMulV2"),
    ),
    "graph_conv_fusion: spacetobatchnd_conv2d_batchtospacend_fusion": Case(
        dilated, {CONV: 1, "QuantizeV2": 1, "Dequantize": 1}, ("SpaceToBatchND", "BatchToSpaceND", "Relu")
    ),
    "graph_conv_fusion: conv_relu_fusion": Case(
        lambda x: tf.nn.relu6(tf.nn.relu(conv(pad(x), stride=2, padding="VALID"))), {CONV: 1, "Relu6": 1}, ("Relu",)
    ),
    "graph_conv_fusion: conv_biasadd_relu6_fusion": Case(
        lambda x: tf.nn.relu6(norm(conv(pad(x), stride=2, padding="VALID"))), {CONV: 1}, ("Relu6", "FusedBatchNormV3")
    ),
    "graph_conv_fusion: conv_biasadd_swishf32_fusion": Case(
        in_a_function, {CONV: 1}, ("Conv2D", "Pad", "FusedBatchNormV3")
    ),
    "graph_conv_fusion: conv_addv2_fusion": Case(
        lambda x: conv(x, stride=2) + conv(x, K3 * 0.5, stride=2), {CONV: 2, "AddV2": 1, "QuantizeV2": 1}
    ),
    "graph_conv_fusion: conv_biasadd_add_relu_fusion": Case(
        lambda x: tf.nn.relu6(tf.nn.relu(conv(x) + BIAS + 3.0)), {CONV: 1, "Relu6": 1}, ("AddV2", "Relu")
    ),
    "graph_conv_fusion: conv_biasadd_addv2_relu_fallback_fusion_1": Case(
        lambda x: tf.nn.relu(norm(conv(pad(x), padding="VALID")) + norm(conv(tf.nn.leaky_relu(x)))),
        {CONV: 2, "AddV2": 1, "Relu": 1, "LeakyRelu": 1, "QuantizeV2": 2, "Dequantize": 2},
    ),
    "graph_conv_fusion: conv_biasadd_addv2_relu_fallback_fusion_2": Case(
        lambda x: tf.nn.relu(norm(conv(pad(y := tf.nn.relu(x)), padding="VALID")) + norm(conv(y))),
        {CONV: 2, "AddV2": 1, "Relu": 2, "QuantizeV2": 1, "Dequantize": 2},
        ("Pad",),
    ),
    "graph_conv_requantize_fusion: conv_biasadd_relu6_fusion": Case(
        lambda x: tf.nn.relu6(norm(conv(pad(x), stride=2, padding="VALID"))) * 2.0, {CONV: 1}, ("Relu6",)
    ),
    "graph_conv_requantize_fusion: conv_biasadd_addv2_relu_fusion": Case(
        lambda x: tf.nn.relu(conv(tf.nn.relu(conv(y := tf.nn.relu(conv(x))))) + y),
        {CONV: 3, "Dequantize": 1},
        ("AddV2",),
        recipes=("sum_fusion",),
    ),
    "graph_conv_requantize_fusion: conv_fusion_with_last_matmul": Case(
        lambda x: tf.reshape(tf.nn.max_pool2d(tf.nn.relu(conv(x)), 8, 8, "VALID"), [-1, 8]) @ normal(8, 4),
        {CONV: 1, "QuantizedMaxPool": 1, PRODUCT: 1, "QuantizeV2": 1},
        ("Dequantize", "MaxPool"),
        fused=DEQUANTIZED,
    ),
    "graph_conv_requantize_fusion: conv_fusion_with_last_conv": Case(
        lambda x: conv(tf.nn.max_pool2d(tf.nn.relu(conv(x) + BIAS), 2, 2, "SAME"), K1),
        {CONV: 2, "QuantizedMaxPool": 1, "QuantizeV2": 1, "Dequantize": 1},
    ),
    "graph_depthwiseconv_fusion: depthwiseconv_biasadd_fusion": Case(
        lambda x: norm(slim(x, padding="VALID")), {SLIM: 1, "Dequantize": 1}, ("FusedBatchNormV3",)
    ),
    "graph_depthwiseconv_fusion: depthwiseConv2dNative_BiasAddAddRelu6MulMul_fusion": Case(
        lambda x: hard_swish(slim(x) + BIAS), {SLIM: 1, "Relu6": 1}, ("DepthwiseConv2dNative",)
    ),
    "graph_depthwiseconv_fusion: depthwiseconv_biasadd_leakyrelu_fusion": Case(
        lambda x: tf.nn.leaky_relu(norm(slim(x))), {SLIM: 1, "LeakyRelu": 1}, ("FusedBatchNormV3",)
    ),
    "graph_dequantize_cast_optimizer_newapi: dequantize_cast_normal": Case(
        lambda x: tf.cast(tf.cast(conv(x), tf.bfloat16), tf.float32), {CONV: 1, "Dequantize": 1, "Cast": 2}
    ),
    "graph_dq_cast_fusion: dq_all_outputs_bf16": Case(
        lambda x: tf.cast(tf.nn.relu(tf.cast(y := conv(x), tf.bfloat16)), tf.float32) + y,
        {CONV: 1, "Dequantize": 1, "Cast": 2},
    ),
    "graph_fuse_gelu_newapi: gelu": activated(lambda y: tf.nn.gelu(y, approximate=True), "GeluApproximate", bias=True),
    "graph_fuse_gelu_newapi: gelu_approximation_fusion_with_invalid_pow_value": Case(
        lambda x: (y := dense(x)) * 0.5 * (1.0 + tf.tanh(0.7978846 * (y + 0.044715 * tf.pow(y, 2.5 * 0 + 2.0)))),
        {PRODUCT: 1, "Tanh": 1},
        ("MatMul",),
        ROWS,
        fused=DEQUANTIZED,
    ),
    "graph_fuse_gelu_newapi: gelu_approximation_fusion_with_invalid_multiply_value": Case(
        lambda x: (y := dense(x)) * 0.5 * (1.0 + tf.tanh(0.9 * (y + 0.044715 * tf.pow(y, 3.0)))),
        {PRODUCT: 1, "Tanh": 1},
        ("MatMul",),
        ROWS,
        fused=DEQUANTIZED,
    ),
    "graph_fuse_pad_conv_fp32: fold_pad_conv": Case(
        lambda x: tf.nn.relu(norm(conv(pad(x), stride=2, padding="VALID"))), {CONV: 1}, ("Pad", "Relu")
    ),
    "graph_fuse_pad_conv_fp32: fold_pad_conv2": Case(
        lambda x: conv(p := pad(x), padding="VALID") + conv(p, K3 * 0.7, padding="VALID"), {CONV: 2}, ("Pad",)
    ),
    "graph_fuse_pad_conv_fp32: fold_non_const_pad_conv": Case(
        lambda x: conv(tf.pad(x, tf.stack([[0, 0], [1, 1], [1, 1], [0, 0]])), padding="VALID"), {CONV: 1}, ("Pad",)
    ),
    "fuse_reshape_transpose: fuse_enter_reshape_transpose": product(
        lambda x: x @ tf.reshape(tf.transpose(tf.constant(SQUARE)), [16, 16]),
        "BiasAdd Dequantize",
        ("Transpose", "Reshape"),
    ),
    "graph_qdq_bn_fusion: bn_relu_depthwiseconv_biasadd_relu6_fusion": Case(
        lambda x: tf.nn.relu6(norm(slim(tf.nn.relu(norm(x)), 2, "VALID"))),
        {SLIM: 1, "QuantizeV2": 1, "Dequantize": 1, "Relu": 1},
        ("Relu6",),
        floats=NO_BATCH_NORM,
    ),
    "graph_qdq_bn_fusion: training_bn_relu_depthwiseconv_biasadd_relu6_fusion": Case(
        lambda x: tf.nn.relu6(norm(slim(tf.nn.relu(training_norm(x)), 2, "VALID"))),
        {SLIM: 1, "FusedBatchNormV3": 1, "Dequantize": 1},
        ("Relu6",),
        floats=(("FusedBatchNormV3", "no int8 kernel"),),
    ),
    "graph_qdq_bn_fusion: bn_leakyrelu_conv_biasadd_relu": Case(
        lambda x: tf.nn.relu(norm(conv(tf.nn.leaky_relu(norm(x), 0.3), stride=2, padding="VALID"))),
        {CONV: 1, "LeakyRelu": 1, "Dequantize": 1},
        ("Relu",),
    ),
    "graph_qdq_bn_fusion: bn_relu_conv_biasadd_relu": Case(
        lambda x: tf.nn.relu(norm(conv(tf.nn.relu(norm(x)), stride=2, padding="VALID"))),
        {CONV: 1, "Relu": 1, "Dequantize": 1},
        floats=NO_BATCH_NORM,
    ),
    "graph_qdq_bn_fusion: bnex_performance_only_false": Case(
        lambda x: tf.nn.relu6(conv(norm(conv(tf.nn.relu(norm(x)))), normal(5, 5, 8, 2), stride=3, padding="VALID")),
        {CONV: 2, "QuantizeV2": 1, "Dequantize": 1},
        ("Relu6",),
    ),
    "graph_qdq_concat_fusion: tensorflow_concat_quantization": Case(
        lambda x: conv(
            tf.concat(
                [
                    tf.nn.relu(conv(x)),
                    tf.nn.relu(conv(x, K1)),
                    tf.nn.relu(conv(x, K3 * 3.0)),
                    tf.nn.relu(conv(x, K1 * 0.3)),
                ],
                3,
            ),
            normal(1, 1, 32, 8),
        ),
        {CONV: 5, "ConcatV2": 1, "QuantizeV2": 1, "Dequantize": 1},
    ),
    "graph_qdq_concat_fusion: concat_with_different_input_type": Case(
        lambda x: tf.nn.avg_pool2d(
            tf.concat([tf.nn.relu(norm(conv(tf.sqrt(y := tf.nn.relu(x))))), conv(y) + BIAS], 1), 1, 2, "SAME"
        ),
        {CONV: 2, "ConcatV2": 1, "AvgPool": 1, "Dequantize": 2},
        floats=(("AvgPool", "no int8 kernel"),),
    ),
    "graph_qdq_concat_fusion: concat_with_same_input_type": Case(
        lambda x: conv(tf.concat([tf.nn.relu(conv(tf.sqrt(y := tf.nn.relu(x)))), tf.nn.relu(conv(y) + BIAS)], 1), K1),
        {CONV: 3, "ConcatV2": 1, "QuantizeV2": 2, "Dequantize": 1},
    ),
    "graph_qdq_concat_fusion: concat_with_qint8_and_fp32_input_type": Case(
        lambda x: conv(tf.concat([conv(x), tf.nn.avg_pool2d(x, 1, 1, "SAME")], 1), K1),
        {CONV: 2, "ConcatV2": 1, "Dequantize": 2, "QuantizeV2": 2},
    ),
    "graph_qdq_conv3d_fusion: conv3d_addv2_relu_fusion": float_volume(lambda y: tf.nn.relu(y + normal(4)), "Relu"),
    "graph_qdq_conv3d_fusion: single_conv3d_fusion": float_volume(lambda y: y * 2.0),
    "graph_qdq_conv3d_fusion: conv3d_biasadd_fusion": float_volume(lambda y: y + normal(1, 1, 1, 1, 4)),
    "graph_qdq_conv3d_fusion: conv3d_relu6_fusion": float_volume(tf.nn.relu6, "Relu6"),
    "graph_qdq_conv3d_fusion: conv3d_leakyrelu_fusion": float_volume(tf.nn.leaky_relu, "LeakyRelu"),
    "graph_qdq_conv3d_fusion: deconv3d": Case(
        lambda x: tf.nn.conv3d_transpose(x, CUBE, [2, 4, 6, 6, 4], [1, 1, 1, 1, 1])[:, 0, :, :, :] @ MIXED,
        {"Conv3DBackpropInputV2": 1, PRODUCT: 1},
        (),
        VOLUME,
        (("Conv3DBackpropInputV2", "deconvolution"),),
    ),
    "graph_qdq_conv_fusion: fold_pad_conv": Case(
        lambda x: tf.nn.relu(norm(conv(pad(x), stride=2, padding="VALID"))), {CONV: 1, "Dequantize": 1}, ("Pad",)
    ),
    "graph_qdq_conv_fusion: conv_biasadd_leakyrelu_fusion": Case(
        lambda x: tf.nn.leaky_relu(norm(conv(pad(x), stride=2, padding="VALID"))), {CONV: 1, "LeakyRelu": 1}, ("Pad",)
    ),
    "graph_qdq_conv_fusion: conv_biasadd_add_relu_fusion": Case(
        lambda x: tf.nn.relu(norm(conv(x)) + tf.nn.relu(norm(conv(tf.nn.relu(x))))),
        {CONV: 2, "AddV2": 1, "Relu": 2, "Dequantize": 2},
        floats=(("AddV2", "write in place"),),
    ),
    "graph_qdq_depthwiseconv_fusion: depthwiseconv_biasadd_relu6_fusion": Case(
        lambda x: tf.nn.relu6(norm(slim(pad(x), 2, "VALID"))), {SLIM: 1, "Dequantize": 1}, ("Relu6", "Pad")
    ),
    "graph_qdq_matmul_fusion: matmul_biasadd_relu_requantize_fusion": activated(tf.nn.relu, "Relu", bias=True),
    "graph_qdq_matmul_fusion: first_matmul_biasadd_relu_fusion": Case(
        lambda x: tf.nn.relu(dense(tf.abs(x))),
        {PRODUCT: 1, "Abs": 1},
        ("Relu",),
        ROWS,
        fused=("BiasAdd Relu Dequantize",),
    ),
    "graph_qdq_matmul_fusion: matmul_biasadd_requantize_dequantize_fusion": product(dense, "BiasAdd Dequantize"),
    "graph_qdq_matmul_fusion: matmul_biasadd_requantize_dequantize_last_fusion": Case(
        lambda x: dense(dense(x)),
        {PRODUCT: 2, "QuantizeV2": 1},
        ("Dequantize",),
        ROWS,
        fused=("BiasAdd Requantize", "BiasAdd Dequantize"),
    ),
    "graph_qdq_matmul_fusion: matmul_fusion_with_transpose_b_true": product(
        lambda x: tf.nn.relu6(tf.matmul(x, SQUARE, transpose_b=True)), "BiasAdd Relu6 Dequantize", ("Relu6",)
    ),
    "graph_qdq_matmul_fusion: matmul_dummybiasadd_relu6_fusion": activated(tf.nn.relu6, "Relu6", bias=False),
    "graph_qdq_matmul_fusion: matmul_with_reshape_transpose": product(
        lambda x: tf.nn.bias_add(x @ tf.reshape(tf.transpose(tf.constant(SQUARE)), [16, 16]), LONG),
        "BiasAdd Dequantize",
    ),
    "graph_qdq_matmul_fusion: matmul_with_add": product(lambda x: x @ SQUARE + LONG, "BiasAdd Dequantize", ("AddV2",)),
    "graph_qdq_matmul_fusion: matmul_biasadd_requantize_dequantize_fusion_with_softmax": Case(
        lambda x: tf.nn.softmax(tf.nn.bias_add(tf.nn.bias_add(dense(x), LONG) @ SQUARE, LONG)),
        {PRODUCT: 2, "Softmax": 1, "QuantizeV2": 1},
        ("BiasAdd", "Dequantize"),
        ROWS,
        (("Softmax", "no int8 kernel"),),
    ),
    "graph_qdq_matmul_fusion: matmul_biasadd_relu_non_const_weight": Case(
        lambda x: tf.nn.relu(tf.nn.bias_add(tf.matmul(x, x, transpose_b=True) @ tf.abs(x), LONG)) @ SQUARE,
        {PRODUCT: 1, "MatMul": 2},
        (),
        ROWS,
        (("MatMul", "both operands are activations"),),
    ),
    "graph_qdq_matmul_fusion: matmul_with_dummy_biasadd": product(
        lambda x: tf.identity(x @ SQUARE), "BiasAdd Dequantize"
    ),
    "graph_qdq_matmul_fusion: first_matmul_addv2_relu_fusion": Case(
        lambda x: tf.nn.relu(x @ SQUARE + tf.nn.relu(x @ SQUARE[::-1].copy())),
        {PRODUCT: 2, "Relu": 1, "QuantizeV2": 1},
        ("AddV2", "Dequantize"),
        ROWS,
        fused=("BiasAdd Relu Dequantize", "BiasAdd Add Dequantize"),
    ),
    "graph_qdq_matmul_fusion: batchmatmulv2_dequantize_fusion": product(
        lambda x: tf.nn.relu(tf.nn.bias_add(tf.raw_ops.BatchMatMulV2(x=x, y=SQUARE), LONG)),
        "BiasAdd Relu Dequantize",
        ("BatchMatMulV2",),
    ),
    "graph_qdq_matmul_fusion: batchmatmulv2_mul_dequantize_fusion": Case(  # one matrix per head: no int8 kernel
        lambda x: tf.nn.relu(tf.raw_ops.BatchMatMulV2(x=x, y=PLANE) * 0.2),
        {"BatchMatMulV2": 1, "Relu": 1},
        (PRODUCT,),
        WIDE,
        (("BatchMatMulV2", "one matrix per member"),),
    ),
    "graph_qdq_matmul_fusion: batchmatmulv2_add_dequantize_fusion": product(
        lambda x: tf.nn.relu(tf.raw_ops.BatchMatMulV2(x=x, y=PLANE[:, :1]) + normal(5)),
        "BiasAdd Relu Dequantize",
        ("BatchMatMulV2",),
        WIDE,
    ),
    "graph_qdq_matmul_fusion: batchmatmulv2_mul_add_dequantize_fusion": product(
        lambda x: tf.nn.relu(tf.raw_ops.BatchMatMulV2(x=x, y=PLANE[:, :1]) * 0.2 + normal(5)),
        "BiasAdd Relu Dequantize",
        ("Mul", "AddV2"),
        WIDE,
    ),
    **{
        f"graph_qdq_matmul_fusion: matmul_{'' if bias else 'dummy_'}biasadd_{name}_fusion": activated(
            function, kind, bias=bias
        )
        for bias in (True, False)
        for name, kind, function in (
            ("relu6", "Relu6", tf.nn.relu6),
            ("leakyrelu", "LeakyRelu", tf.nn.leaky_relu),
            ("geluapproximate", "GeluApproximate", lambda y: tf.nn.gelu(y, approximate=True)),
            ("geluexact", "GeluExact", lambda y: tf.nn.gelu(y, approximate=False)),
            ("elu", "Elu", tf.nn.elu),
            ("tanh", "Tanh", tf.nn.tanh),
            ("sigmoid", "Sigmoid", tf.nn.sigmoid),
        )
    },
    "graph_qdq_matmul_fusion: matmul_add_const_fusion": product(
        lambda x: tf.math.add(x @ SQUARE, LONG), "BiasAdd Dequantize"
    ),
    "graph_qdq_matmul_fusion: matmul_add_non_const_fusion": Case(
        lambda x: tf.nn.relu(x @ SQUARE + x),
        {PRODUCT: 1, "Relu": 1},
        ("AddV2",),
        ROWS,
        fused=("BiasAdd Add Dequantize",),
    ),
    "graph_qdq_matmul_fusion: matmul_biasadd_add_const_fusion": product(
        lambda x: dense(x) + LONG, "BiasAdd Dequantize", ("AddV2",)
    ),
    "graph_qdq_matmul_fusion: matmul_biasadd_add_non_const_fusion": product(
        lambda x: dense(x) + x, "BiasAdd Add Dequantize", ("AddV2",)
    ),
    "graph_qdq_new_conv_fusion: conv_biasadd_add_leakyrelu_fusion": Case(
        lambda x: tf.nn.leaky_relu(norm(conv(x, stride=2)) + conv(x, K3 * 0.5, stride=2)),
        {CONV: 2, "AddV2": 1, "LeakyRelu": 1, "QuantizeV2": 1},
    ),
    "graph_qdq_pooling_fusion: qdq_maxpool_fusion": Case(
        lambda x: tf.nn.relu(
            conv(tf.nn.max_pool2d(tf.nn.relu(norm(conv(tf.nn.relu(x), stride=2))), 1, 2, "SAME")) + BIAS
        ),
        {CONV: 2, "QuantizedMaxPool": 1, "QuantizeV2": 1, "Dequantize": 1},
        ("MaxPool",),
    ),
    "graph_qdq_pooling_fusion: qdq_avgpool_fusion": Case(
        lambda x: tf.nn.relu(
            conv(tf.nn.avg_pool2d(tf.nn.relu(norm(conv(tf.nn.relu(x), stride=2))), 1, 2, "SAME")) + BIAS
        ),
        {CONV: 2, "AvgPool": 1, "QuantizeV2": 2, "Dequantize": 2},
        floats=(("AvgPool", "no int8 kernel"),),
    ),
}

FROZEN: dict[str, Case] = {
    "graph_column_wise_mul: depthwiseconv_mul": Case(lambda x: slim(x) * BIAS, {SLIM: 1}, ("Mul",)),
    "graph_conv_as_output: conv_as_output": Case(lambda x: conv(tf.nn.relu(conv(x))), {CONV: 2, "Dequantize": 1}),
    "graph_conv_math: conv_add_mul": Case(lambda x: (conv(x) + BIAS) * 2.0 - 1.0, {CONV: 1}, ("Mul", "AddV2", "Sub")),
    "graph_convert_layout: convert_layout": Case(
        lambda x: conv(tf.transpose(tf.transpose(tf.nn.relu(conv(x)), [0, 3, 1, 2]), [0, 2, 3, 1])),
        {CONV: 2, "Transpose": 2},
    ),
    "graph_convert_leakyrelu: convert_leaky_relu": Case(
        lambda x: tf.maximum(y := conv(x) + BIAS, y * 0.3), {CONV: 1, "Maximum": 1, "Mul": 1}
    ),
    "graph_cse_optimization: graph_cse": Case(
        lambda x: tf.nn.relu(conv(x)) + tf.nn.relu(conv(x)), {CONV: 2, "QuantizeV2": 1}
    ),
    "graph_expanddims_optimizer: expanddims": Case(
        lambda x: conv(x, tf.expand_dims(tf.expand_dims(tf.constant(K1[0, 0]), 0), 0)), {CONV: 1}, ("ExpandDims",)
    ),
    "graph_fetch_weight_from_reshape: fetch_weight": Case(
        lambda x: conv(x, tf.reshape(tf.constant(K3.reshape(-1)), [3, 3, 8, 8])), {CONV: 1}, ("Reshape",)
    ),
    "graph_fold_bn: fold_bn": Case(
        lambda x: norm(tf.nn.bias_add(conv(x), BIAS)), {CONV: 1}, ("FusedBatchNormV3", "BiasAdd")
    ),
    "graph_fuse_decomposed_bn: conv_decomposed_bn": Case(
        lambda x: tf.nn.relu(conv(x) * (f := tf.math.rsqrt(tf.constant(BIAS**2 + 0.5))) + (BIAS - 0.3 * f)),
        {CONV: 1},
        ("Mul", "AddV2", "Relu"),
    ),
    "graph_fold_const: fold_const": Case(
        lambda x: x @ (tf.constant(SQUARE) * 2.0 + tf.eye(16)), {PRODUCT: 1}, ("Mul", "AddV2"), ROWS
    ),
    "graph_library_detection: swish_in_a_function": Case(in_a_function, {CONV: 1}, ("Conv2D",)),
    "graph_meta_pass: reshapes_between_int8_ops": Case(
        lambda x: tf.reshape(tf.reshape(tf.nn.relu(conv(x)), [-1, 512]), [-1, 64, 8]) @ normal(8, 4)[None],
        {CONV: 1, PRODUCT: 1, "QuantizeV2": 1},
        ("Dequantize",),
    ),
    "graph_pad_conv: pad_with_values": Case(  # only zeros can become the padding of a convolution
        lambda x: conv(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=0.5), padding="VALID"),
        {CONV: 1, "PadV2": 1},
    ),
    "graph_post_cse_optimize: post_cse": Case(
        lambda x: tf.concat([conv(y := tf.nn.relu(conv(x))), conv(y, K3 * 0.5)], 3),
        {CONV: 3, "QuantizeV2": 1, "Dequantize": 2},
    ),
    "graph_switch_optimizer: switch_optimizer": Case(switched, {CONV: 1, "Switch": 1, "Merge": 1}),
    "move_squeeze_after_relu: squeeze_biasadd_relu": Case(
        lambda x: tf.nn.relu(tf.nn.bias_add(tf.squeeze(conv(x, normal(8, 8, 8, 8), padding="VALID"), [1, 2]), BIAS)),
        {CONV: 1, "Squeeze": 1},
    ),
    "quantize_input: quantize_input": Case(lambda x: conv(x) + conv(x, K1), {CONV: 2, "QuantizeV2": 1, "AddV2": 1}),
    "remove_training_nodes: dropout_and_checks": Case(
        lambda x: conv(tf.stop_gradient(tf.debugging.check_numerics(tf.identity(x), "x"))),
        {CONV: 1},
        ("Identity", "StopGradient", "CheckNumerics"),
    ),
    "rnn: while": Case(
        lambda x: (
            tf.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, tf.tanh(h @ SQUARE)), [0, x @ SQUARE])[1] @ SQUARE
        ),
        {PRODUCT: 2},
        (),
        ROWS,
    ),
    "share_nodes_graph: share_nodes": Case(
        lambda x: tf.nn.relu(x @ (w := tf.constant(SQUARE))) @ w, {PRODUCT: 2, "QuantizeV2": 1}, ("Dequantize",), ROWS
    ),
    "strip_equivalent_nodes: strip": Case(  # of two products that are summed up, one takes over the sum
        lambda x: tf.reshape(x, [-1, 16]) @ SQUARE + tf.reshape(x, [-1, 16]) @ SQUARE.T.copy(),
        {PRODUCT: 2, "QuantizeV2": 1},
        ("AddV2", "MatMul"),
        (None, 2, 8),
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_pattern_of_theirs(name: str, tmp_path: Path) -> None:
    check(FUSED[name], tmp_path)


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_graph_of_theirs(name: str, tmp_path: Path) -> None:
    check(FROZEN[name], tmp_path)


def test_a_layout_that_has_no_kernel_stays_float_and_says_so() -> None:
    """graph_convert_layout: a graph with channels first is read, and its convolution stays as it is."""
    graph_def = graph_of(lambda x: tf.nn.conv2d(x, K3, 1, "SAME", data_format="NCHW"), {"x": (None, 8, 8, 8)})
    (op,) = (op for op in ADAPTER.query(hold_of(graph_def)).ops if op.type == "Conv2D")
    assert "NCHW" in op.why


def test_weights_that_are_not_finite_are_named() -> None:
    """graph_convert_nan: theirs puts zeros in the place of NaN; a model with NaN in a weight is broken, and zeros would hide it."""
    broken = SQUARE.copy()
    broken[3, 4] = np.nan
    (op,) = (
        op for op in ADAPTER.query(hold_of(graph_of(lambda x: x @ broken, {"x": ROWS}))).ops if op.type == "MatMul"
    )
    assert "not finite" in op.why
    assert not op.is_quantizable


def test_recipes_of_theirs_are_refused_by_name() -> None:
    """smooth_quant_newapi and bias_correction."""
    hold = hold_of(small_cnn())
    for recipe in ("smoothquant", "bias_correction"):
        with pytest.raises(CapabilityError, match=rf"{recipe}.*sum_fusion"):
            ADAPTER.build(hold, Candidate.of(full(hold).ops, (), (recipe,)), None, 1)


def test_asymmetric_codes_are_refused_with_the_reason(tmp_path: Path) -> None:
    """MIN_FIRST of qdq_matmul_fusion."""
    hold = hold_of(graph_of(dense, {"x": ROWS}))
    name, config = next(iter(full(hold).ops.items()))
    asymmetric = replace(config, activation=replace(config.activation, symmetric=False))
    with pytest.raises(CapabilityError, match=r"zero point 0.*convolutions and pooling"):
        ADAPTER.build(hold, Candidate.of({name: asymmetric}), None, 1)


def test_the_form_for_their_plugin_is_refused() -> None:
    """itex_qdq."""
    with pytest.raises(CapabilityError, match="quant_format 'QDQ'"):
        hold_of(small_cnn(), quant_format="QDQ")


def test_a_graph_above_two_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """big_saved_model: TensorFlow reads no protocol buffer above 2 GB; here the limit is that of a small one."""
    monkeypatch.setattr(save, "_LIMIT", 1000)
    with pytest.raises(AdapterError, match="2 GB"):
        ADAPTER.save(ADAPTER.build(hold_of(small_cnn()), Candidate(), None, 1), tmp_path)
