"""Any subset of a candidate's ops quantized, for sensitivity probes.

LiteRT has no switch inside a ready model, but a `.tflite` file with another subset takes tens of milliseconds; the last few stay open,
because a probe asks for the same subset batch after batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from neural_tune.protocols import Inputs, Outputs
from neural_tune.values import FLOAT, Candidate
from neural_tune_tensorflow.backend import Port, RunFeed
from neural_tune_tensorflow.inputs import to_feed

_OPEN = 4


class LiteToggles:
    """Implements `neural_tune.protocols.Toggles`."""

    def __init__(self, candidate: Candidate, build: Callable[[Candidate], RunFeed], ports: Sequence[Port]) -> None:
        """Prepare the subsets of `candidate`.

        Args:
            candidate: What is quantized with every op switched on.
            build: Makes a candidate runnable.
            ports: The model's inputs.
        """
        self._candidate = candidate
        self._build = build
        self._ports = tuple(ports)
        self._open: OrderedDict[frozenset[str], RunFeed] = OrderedDict()

    def run(self, int8_ops: frozenset[str], inputs: Inputs) -> Outputs:
        """Return the outputs when exactly `int8_ops` are quantized."""
        chosen = frozenset(int8_ops) & frozenset(self._candidate.ops)
        if chosen not in self._open:
            off = dict.fromkeys(set(self._candidate.ops) - chosen, FLOAT)
            self._open[chosen] = self._build(self._candidate.with_ops(off))
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(chosen)
        return self._open[chosen](to_feed(inputs, self._ports))
