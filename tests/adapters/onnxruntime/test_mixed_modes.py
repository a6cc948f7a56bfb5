"""Static, dynamic, weight-only and float side by side in one model."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import random
import subprocess
import sys

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, graph_of, options, weights
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from neural_tune.space import TuningSpace
from neural_tune.testing import AdapterConformance
from neural_tune.values import Candidate, Granularity, Mode, Observer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def block_net():
    """Half a transformer: products over three axes in parallel, attention, a sum, a norm, an activation between two products."""
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [n], f"mm_{n}") for n in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["c"], "context"),
        helper.make_node("MatMul", ["c", "wo"], ["o"], "mm_o"),
        helper.make_node("Add", ["o", "bo"], ["ob"], "bias_o"),
        helper.make_node("Add", ["ob", "x"], ["s"], "sum"),
        helper.make_node("LayerNormalization", ["s", "g", "z"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "wu"], ["u"], "mm_up"),
        helper.make_node("Relu", ["u"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "wd"], ["y"], "mm_down"),
    ]
    found = weights(3, wq=(32, 32), wk=(32, 32), wv=(32, 32), wo=(32, 32), bo=(32,), wu=(32, 64), wd=(64, 16))
    found |= {"g": np.ones(32, np.float32), "z": np.zeros(32, np.float32)}
    return graph_of(nodes, found, {"x": ["n", 6, 32]})


def hybrid_net():
    """Convolutions that end in products."""
    model = graphs.conv_net()
    model.graph.node.append(helper.make_node("Gemm", ["y", "w5"], ["z"], "fc2"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights(8, w5=(5, 40))["w5"], "w5"))
    model.graph.output[0].name = "z"
    return model


NETS = {"block": block_net, "hybrid": hybrid_net, "lstm": graphs.lstm_net, "perceptron": graphs.perceptron}


@pytest.fixture(params=sorted(NETS))
def auto(request, tmp_path):
    """The model, its hold, its space and its statistics, under `approach: auto`."""
    return prepared(NETS[request.param](), tmp_path)


def prepared(model, folder, **changes):
    hold = ADAPTER.load(model, options(approach="auto", reduce_range=False, **changes))
    space = TuningSpace.of(ADAPTER.query(hold))
    return model, hold, space, ADAPTER.calibrate(hold, graphs.batches(model), folder / "statistics")


class TestAuto(AdapterConformance):
    """The protocol, where every op has choices of several modes."""

    registered = "onnxruntime"

    @pytest.fixture
    def options(self):
        return options(approach="auto")

    @pytest.fixture
    def model(self):
        return block_net()

    @pytest.fixture
    def calibration(self, model):
        return graphs.batches(model)

    @pytest.fixture
    def float_outputs(self, model, inputs):
        return tuple(graphs.run(model, inputs))


def test_any_mixture_builds_and_is_near_float(auto):
    model, hold, space, statistics = auto
    (feed,) = graphs.batches(model, 1)
    expected = graphs.run(model, feed)[0]
    rng = random.Random(4)
    modes = set()
    for _ in range(12):
        candidate = space.candidate({group.name: rng.choice(group.choices) for group in space.groups})
        modes |= {config.mode for config in candidate.ops.values()}
        built = ADAPTER.build(hold, candidate, statistics, 1)
        found = ADAPTER.run(built, feed)[0]
        assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)
        wanted = {
            op.name: candidate.config_of(op.name).describe() for op in built.report.ops if op.name in candidate.ops
        }
        got = {op.name: op.precision for op in built.report.ops if op.name in wanted and not op.is_float}
        assert all(wanted[name] == precision for name, precision in got.items())
        assert all(op.reason for op in built.report.ops if op.is_float)
    assert len(modes) >= 2


def test_mixture_equals_the_two_stock_tools_one_after_the_other(tmp_path):
    """Static first, then dynamic on what the first left in float: the runtime's own tools, applied in turn."""
    model, hold, space, statistics = prepared(graphs.perceptron(), tmp_path)
    static = next(c for c in space.groups[0].choices if c.mode is Mode.STATIC)
    dynamic = next(
        c for c in space.groups[0].choices if c.mode is Mode.DYNAMIC and c.weight.granularity is Granularity.PER_CHANNEL
    )
    feeds = graphs.batches(model)
    source = onnx.load(str(ADAPTER.save(ADAPTER.build(hold, Candidate(), None, 1), tmp_path / "normalised")))
    for statics in (("fc1",), ("fc2",), ("fc3",), ("fc1", "fc2")):
        others = [name for name in ("fc1", "fc2", "fc3") if name not in statics]
        chosen = dict.fromkeys(statics, static) | dict.fromkeys(others, dynamic)
        found = ADAPTER.run(ADAPTER.build(hold, Candidate.of(chosen), statistics, 1), feeds[0])[0]
        # An output that nothing int8 reads: we leave it in float, and the tool does so when told.
        plain = {"OpTypesToExcludeOutputQuantization": ["MatMul"]} if statics == ("fc3",) else {}
        first = graphs.stock(
            source, feeds, tmp_path, op_types=["Gemm", "MatMul", "Relu"], exclude=[*others, *_relus(statics)], **plain
        )
        # The tool splits every Gemm into MatMul and Add before it quantizes.
        quantize_dynamic(
            str(first), str(tmp_path / "both.onnx"), op_types_to_quantize=["Gemm", "MatMul"], per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=[*statics, *(f"{name}_MatMul" for name in statics)],
        )  # fmt: skip
        expected = graphs.run(tmp_path / "both.onnx", feeds[0])[0]
        np.testing.assert_array_equal(found, expected)


def _relus(statics):
    return [f"relu{name[-1]}" for name in ("fc1", "fc2") if name not in statics]


def test_switches_equal_built_candidates_for_any_mixture(tmp_path):
    model, hold, space, statistics = prepared(block_net(), tmp_path)
    (feed,) = graphs.batches(model, 1)
    rng = random.Random(11)
    for _ in range(3):
        full = space.candidate({group.name: rng.choice(group.choices[:-1]) for group in space.groups})
        toggles = ADAPTER.toggles(hold, full, statistics, 1)
        for _ in range(4):
            names = frozenset(name for name in full.ops if rng.random() < 0.5)
            part = Candidate.of({name: full.ops[name] for name in names})
            expected = ADAPTER.run(ADAPTER.build(hold, part, statistics, 1), feed)[0]
            found = toggles.run(names, feed)[0]
            assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_transformers_are_dynamic_first_and_convolutional_nets_static(tmp_path):
    _, _, space, _ = prepared(block_net(), tmp_path / "a")
    assert {group.choices[0].mode for group in space.groups} == {Mode.DYNAMIC}
    assert {group.type for group in space.groups} == {"MatMul"}  # no companion without an int8 region
    modes = [list(dict.fromkeys(config.mode for config in group.choices)) for group in space.groups]
    assert all(found == [Mode.DYNAMIC, Mode.STATIC, Mode.WEIGHT_ONLY, Mode.FLOAT] for found in modes)
    assert all(c.output is None for group in space.groups for c in group.choices if c.mode is Mode.STATIC)
    _, _, space, _ = prepared(hybrid_net(), tmp_path / "b")
    assert {group.choices[0].mode for group in space.groups} == {Mode.STATIC}
    assert any(c.mode is Mode.DYNAMIC for g in space.groups if g.type == "Gemm" for c in g.choices)
    _, _, space, _ = prepared(graphs.lstm_net(), tmp_path / "c")
    assert {g.type: g.choices[0].mode for g in space.groups} == {"LSTM": Mode.DYNAMIC, "MatMul": Mode.DYNAMIC}


def test_static_ops_beside_others_are_written_as_operators_on_request(tmp_path):
    model, hold, space, statistics = prepared(hybrid_net(), tmp_path, quant_format="QOperator")
    chosen = {g.name: g.choices[0] for g in space.groups}
    chosen["fc2"] = next(c for g in space.groups if g.name == "fc2" for c in g.choices if c.mode is Mode.DYNAMIC)
    built = ADAPTER.build(hold, space.candidate(chosen), statistics, 1)
    kinds = {node.op_type for node in built.proto.graph.node}
    assert {"QLinearConv", "MatMulInteger"} <= kinds
    (feed,) = graphs.batches(model, 1)
    expected = graphs.run(model, feed)[0]
    assert np.linalg.norm(ADAPTER.run(built, feed)[0] - expected) < 0.1 * np.linalg.norm(expected)


def test_recipes_serve_dynamic_ops_too(tmp_path):
    model, hold, space, statistics = prepared(block_net(), tmp_path)
    assert "smoothquant" in space.capability.recipes
    (feed,) = graphs.batches(model, 1)
    expected = graphs.run(model, feed)[0]
    for recipes in (("smoothquant",), ("bias_correction",), ("bias_correction", "smoothquant")):
        candidate = Candidate.of(space.preferred().ops, (), recipes)
        found = ADAPTER.run(ADAPTER.build(hold, candidate, statistics, 1), feed)[0]
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_blocks_of_a_recipe_are_made_from_the_changed_weights_and_inputs(tmp_path):
    model, hold, space, statistics = prepared(block_net(), tmp_path)
    (feed,) = graphs.batches(model, 1)
    expected = graphs.run(model, feed)[0]
    op = next(op for op in space.capability.ops if op.name == "mm_up")
    four = next(c for c in op.extra if c.weight.dtype == "int4" and c.weight.observer is Observer.GPTQ)
    for recipes in ((), ("smoothquant",)):
        built = ADAPTER.build(hold, Candidate.of({"mm_up": four}, (), recipes), statistics, 1)
        assert np.linalg.norm(ADAPTER.run(built, feed)[0] - expected) < 0.2 * np.linalg.norm(expected)


def test_latency_profile_of_a_mixture_is_finite(tmp_path):
    model, hold, space, statistics = prepared(graphs.matmul_net(), tmp_path)
    found = ADAPTER.profile(hold, space.preferred(), statistics, graphs.batches(model, 1)[0], 1)
    assert all(np.isfinite(time) and time >= 0 for time in (*found.float_ms.values(), *found.int8_ms.values()))
    assert found.predict(space.capability, tuple(space.preferred().ops)) > 0


def test_same_candidate_in_another_process_gives_the_same_file(tmp_path):
    """What a run accepts and what `apply` rebuilds must be one artifact, GPTQ included."""
    source = tmp_path / "m.onnx"
    onnx.save(block_net(), str(source))
    script = (
        "import sys, pathlib, hashlib; sys.path.insert(0, sys.argv[1]); import graphs\n"
        "from neural_tune.space import TuningSpace\n"
        "hold = graphs.ADAPTER.load(sys.argv[2], graphs.options(approach='weight_only'))\n"
        "space = TuningSpace.of(graphs.ADAPTER.query(hold))\n"
        "import onnx; feeds = graphs.batches(onnx.load(sys.argv[2]))\n"
        "stats = graphs.ADAPTER.calibrate(hold, feeds, pathlib.Path(sys.argv[3]) / 's')\n"
        "pick = lambda g: next(c for c in g.choices if 'gptq' in c.describe())\n"
        "built = graphs.ADAPTER.build(hold, space.candidate({g.name: pick(g) for g in space.groups}), stats, 1)\n"
        "path = graphs.ADAPTER.save(built, pathlib.Path(sys.argv[3]) / 'm')\n"
        "print(hashlib.sha256(path.read_bytes()).hexdigest())\n"
    )
    found = []
    for number in range(2):
        arguments = [str(graphs.__file__).rpartition("/")[0], str(source), str(tmp_path / str(number))]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        found.append(done.stdout.strip())
    assert found[0] == found[1]
    assert len(found[0]) == 64
