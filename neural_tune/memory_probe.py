"""The fresh process behind `neural_tune.measure.peak_memory`: load an artifact, run one batch a few times, print the peak."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from neural_tune import plugins

_RUNS = 3
_KIBIBYTE = 1024


def main(arguments: list[str]) -> None:
    """Run the probe. Arguments: framework, artifact, inputs (.npz), threads."""
    framework, artifact, inputs, threads = arguments
    adapter = plugins.adapter_for(Path(artifact), framework)
    built = adapter.restore(Path(artifact), int(threads))
    with np.load(inputs, allow_pickle=False) as stored:
        batch = {name: stored[name] for name in stored.files}
    for _ in range(_RUNS):
        adapter.run(built, batch)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else _KIBIBYTE
    sys.stdout.write(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
