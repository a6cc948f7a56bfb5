"""Evaluation: data as users have it, metrics from libraries, early and exact rejection, the certificate. Imports no framework."""

from neural_tune.evaluation.builtin import METRICS
from neural_tune.evaluation.certificate import Certificate, MetricCertificate, certify
from neural_tune.evaluation.data import (
    ArrayLoader,
    CalibrationStream,
    as_loader,
    batch_length,
    owned,
    split_batch,
    to_numpy,
)
from neural_tune.evaluation.directions import directed
from neural_tune.evaluation.evaluator import Evaluator
from neural_tune.evaluation.function_evaluator import FunctionEvaluator
from neural_tune.evaluation.metric import Metric, MetricInfo
from neural_tune.evaluation.metric_evaluator import MetricEvaluator
from neural_tune.evaluation.metrics import metric, metrics
from neural_tune.evaluation.result import Evaluation
from neural_tune.evaluation.sanity import check_baseline, check_outputs

__all__ = [
    "METRICS",
    "ArrayLoader",
    "CalibrationStream",
    "Certificate",
    "Evaluation",
    "Evaluator",
    "FunctionEvaluator",
    "Metric",
    "MetricCertificate",
    "MetricEvaluator",
    "MetricInfo",
    "as_loader",
    "batch_length",
    "certify",
    "check_baseline",
    "check_outputs",
    "directed",
    "metric",
    "metrics",
    "owned",
    "split_batch",
    "to_numpy",
]
