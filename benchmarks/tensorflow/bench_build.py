"""What a candidate costs: the rewrite alone, and with its session; and what preparing the float model costs once.

    python benchmarks/tensorflow/bench_build.py [network ...]

Processor time, so that a busy machine does not decide.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from networks import NETWORKS

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT
from neural_tune_tensorflow.adapter import TensorFlowAdapter
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.model import hold as canonical_of


def measure(name: str) -> None:
    adapter = TensorFlowAdapter()
    model, inputs = NETWORKS[name]()
    hold = adapter.load(model, AdapterOptions())
    start = time.process_time()
    canonical_of(hold.source)
    prepare = time.process_time() - start
    space = TuningSpace.of(adapter.query(hold))
    with tempfile.TemporaryDirectory() as folder:
        statistics = adapter.calibrate(hold, [inputs[:2]], Path(folder))
    full = space.preferred()
    start = time.process_time()
    onednn.rewrite(hold, full, statistics).graph_def()
    first = time.process_time() - start
    rewrites, builds = [], []
    for group in space.groups[:8]:
        candidate = space.with_choice(full, group, FLOAT)
        start = time.process_time()
        onednn.rewrite(hold, candidate, statistics)
        rewrites.append(time.process_time() - start)
        start = time.process_time()
        adapter.build(hold, candidate, statistics, 1)
        builds.append(time.process_time() - start)
    rewrite = float(np.median(rewrites))
    verdict = "met" if rewrite <= 0.5 else "MISSED"
    print(
        f"{name:13} canonical form {prepare:.2f} s, first candidate (weights quantized) {first:.3f} s, "
        f"each further rewrite {rewrite:.3f} s (bar 0.5: {verdict}), with session {np.median(builds):.3f} s",
        flush=True,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NETWORKS:
        measure(wanted)
