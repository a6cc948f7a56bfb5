"""What calibration leaves behind, the same for every adapter: a `Collector` gathers it, `Statistics` answers, `save` and `load` keep it.

An adapter shows every activation of the float model to a `Collector` and forgets it. The `Statistics` of a tensor are a few kilobytes, and
every quantization range is a pure function of them: no trial reads the calibration data again.
"""

from neural_tune.calibration.archive import load, save
from neural_tune.calibration.collector import Collector
from neural_tune.calibration.statistics import Statistics

__all__ = ["Collector", "Statistics", "load", "save"]
