"""Calibration needs the same memory for ten times the samples: measured in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')
if not Path("/proc/self/status").exists():
    pytest.skip("peak memory of a process is read from /proc, which only Linux has", allow_module_level=True)

CALIBRATION = """
import json, sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from neural_tune_onnxruntime.calibrate import collect

LAYERS = [f"relu{i}" for i in range(8)]

def make_session(names):
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i, name in enumerate(LAYERS):
        weights.append(numpy_helper.from_array(rng.normal(size=(16, 3 if i == 0 else 16, 3, 3)).astype(np.float32) * 0.1, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"conv{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [name]))
        last = name
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

def batches(count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {"x": rng.normal(size=(4, 3, 64, 64)).astype(np.float32)}

stats = collect(make_session, LAYERS, batches(int(sys.argv[1])))
seen = 4 * sum(stats.of(name).count for name in LAYERS)
# Not ru_maxrss: a child that is started through vfork inherits the peak of its parent there, and both cases would look alike.
status = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
print(json.dumps({"peak": peak, "activations": seen}))
"""


def calibrate_in_a_fresh_process(batches: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATION, str(batches)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_ten_times_the_samples_need_the_same_peak_memory():
    few, many = calibrate_in_a_fresh_process(15), calibrate_in_a_fresh_process(150)
    assert many["activations"] == 10 * few["activations"]
    # Keeping the activations, as a calibrator may do, would show: they alone are several times the peak.
    assert many["activations"] > 3 * many["peak"]
    assert many["peak"] <= 1.2 * few["peak"], (few, many)
