"""Layer 0: frozen, hashable values with a canonical JSON form. Imports nothing but the standard library."""

from neural_tune.values.candidate import FLOAT_CANDIDATE, Candidate, TensorRange
from neural_tune.values.canonical import canonical_json, digest, from_jsonable, to_jsonable
from neural_tune.values.capability import Capability, OpCapability, Role
from neural_tune.values.criterion import AccuracyCriterion, Verdict, judge
from neural_tune.values.frozen import FrozenMap
from neural_tune.values.insight import PROBES, Insight, LatencyProfile, ProbeRequest
from neural_tune.values.objective import BUILTIN_OBJECTIVES, Objective, Objectives
from neural_tune.values.quant import FLOAT, DType, Granularity, Mode, Observer, OpConfig, QuantSpec
from neural_tune.values.stop import StopRule
from neural_tune.values.trial import (
    Baseline,
    History,
    Origin,
    Proposal,
    Trial,
    TrialResult,
    TrialStatus,
    count_passes,
)

__all__ = [
    "BUILTIN_OBJECTIVES",
    "FLOAT",
    "FLOAT_CANDIDATE",
    "PROBES",
    "AccuracyCriterion",
    "Baseline",
    "Candidate",
    "Capability",
    "DType",
    "FrozenMap",
    "Granularity",
    "History",
    "Insight",
    "LatencyProfile",
    "Mode",
    "Objective",
    "Objectives",
    "Observer",
    "OpCapability",
    "OpConfig",
    "Origin",
    "ProbeRequest",
    "Proposal",
    "QuantSpec",
    "Role",
    "StopRule",
    "TensorRange",
    "Trial",
    "TrialResult",
    "TrialStatus",
    "Verdict",
    "canonical_json",
    "count_passes",
    "digest",
    "from_jsonable",
    "judge",
    "to_jsonable",
]
