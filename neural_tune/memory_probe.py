"""The fresh process behind `neural_tune.measure.peak_memory`: load an artifact, run one batch a few times, print the peak."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from neural_tune import plugins

_RUNS = 3
_STATUS = Path("/proc/self/status")


def main(arguments: list[str]) -> None:
    """Run the probe. Arguments: framework, artifact, inputs (.npz), threads."""
    framework, artifact, inputs, threads = arguments
    adapter = plugins.adapter_for(Path(artifact), framework)
    built = adapter.restore(Path(artifact), int(threads))
    with np.load(inputs, allow_pickle=False) as stored:
        batch = {name: stored[name] for name in stored.files}
    for _ in range(_RUNS):
        adapter.run(built, batch)
    sys.stdout.write(json.dumps({"peak_bytes": peak_bytes()}) + "\n")


def peak_bytes() -> int:
    """Return the peak resident bytes of this process.

    Linux hands the parent's peak on to `ru_maxrss` of a child that is started through vfork, so it is read from /proc there.
    """
    if _STATUS.is_file():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1:])
