"""The one exception tree of the project.

A message says what was found, what was expected and what to do. Only an `AdapterError` turns a trial into
a *failed trial*; everything else propagates to the caller. A criterion that is not met is a result, not an
exception, except where a caller insists on an accepted model (`TuneResult.save`).
"""


class NeuralTuneError(Exception):
    """Base of every error raised on purpose by neural_tune and its plug-ins."""


class ConfigError(NeuralTuneError):
    """The configuration, a job file or an argument is wrong; the message carries the path of the value."""


class CapabilityError(NeuralTuneError):
    """The framework, runtime or adapter cannot do what was asked for."""


class AdapterError(NeuralTuneError):
    """A framework refused or broke on one model or candidate; inside a trial it makes a failed trial."""


class DataError(NeuralTuneError):
    """Calibration or evaluation data is empty, malformed, of the wrong shape, or cannot be read again."""


class PluginError(NeuralTuneError):
    """An adapter or strategy is missing, registered twice or breaks its protocol."""


class CriterionNotMetError(NeuralTuneError):
    """An accepted model was required, but the run has only a best effort (or nothing)."""
