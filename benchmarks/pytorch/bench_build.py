"""Building one candidate: from cached statistics, against torchao's prepare + calibrate (8 batches) + convert. CPU time, one thread, interleaved, medians.

    python benchmarks/pytorch/bench_build.py [--repeats 5]

Bar: at most 1/2 on a small BERT, at most 1/3 on ResNet-18. Neither side compiles or saves; both end with a Q/DQ graph that runs. Exit code 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import networks
import torch
from torch import nn

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FrozenMap
from neural_tune_pytorch.adapter import PyTorchAdapter
from neural_tune_pytorch.libraries import quiet_import, x86_inductor

BATCHES = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements per contestant")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    cases = (
        ("small BERT", networks.bert(small=True), [networks.tokens(4, 32, seed) for seed in range(BATCHES)], 1 / 2),
        ("ResNet-18", networks.resnet(18), [{"x": networks.images(2, 96, seed)} for seed in range(BATCHES)], 1 / 3),
    )
    missed = 0
    for name, module, batches, bar in cases:
        ours, theirs = compare(module, batches, repeats)
        missed += ours > bar * theirs
        print(
            f"{name}: ours {ours:.3f} s, prepare + calibrate + convert {theirs:.3f} s: 1/{theirs / ours:.1f} (bar 1/{1 / bar:.0f})"
        )
    return int(missed > 0)


def compare(module: nn.Module, batches: list[dict[str, torch.Tensor]], repeats: int) -> tuple[float, float]:
    """Return the median CPU seconds of both."""
    adapter = PyTorchAdapter()
    hold = adapter.load(module, AdapterOptions(example=batches[0], extra=FrozenMap({"compile": False})))
    full = TuningSpace.of(adapter.query(hold)).preferred()
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        cached = adapter.calibrate(hold, batches, Path(folder))
    with torch.no_grad():
        program = torch.export.export(module, (), kwargs=batches[0], strict=False)

    def ours() -> None:
        hold.captured.cache.clear()  # weights are quantized anew: a first candidate pays for that too
        adapter.build(hold, full, cached, 1)

    def theirs() -> None:
        with quiet_import():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        x86 = x86_inductor()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            prepared(**batch)
        convert_pt2e(prepared)

    rows = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)


def seconds(action: Callable[[], None]) -> float:
    """Return the CPU seconds of one run."""
    begin = time.process_time()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        action()
    return time.process_time() - begin


if __name__ == "__main__":
    sys.exit(main())
