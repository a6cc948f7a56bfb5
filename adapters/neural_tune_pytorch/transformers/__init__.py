"""Hugging Face Trainer: quantize what a Trainer trains and evaluates, by its own metrics.

    from neural_tune_pytorch.transformers import NLPTrainer, QuantizationConfig, metrics, objectives

The names are those of Intel Extension for Transformers, whose users change the import.
"""

from neural_tune_pytorch.transformers import metrics, objectives
from neural_tune_pytorch.transformers.quantized import QuantizedModel, load_quantized
from neural_tune_pytorch.transformers.settings import Approach, QuantizationConfig
from neural_tune_pytorch.transformers.trainer import NLPTrainer

__all__ = ["Approach", "NLPTrainer", "QuantizationConfig", "QuantizedModel", "load_quantized", "metrics", "objectives"]
