"""A Trainer that can quantize its model: `evaluate` is the evaluation function, its dataloaders calibrate, its `train` trains fake_quant models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from neural_tune import ConfigError, TuneResult, fit
from neural_tune_pytorch.transformers.metrics import Metric
from neural_tune_pytorch.transformers.quantized import QuantizedModel
from neural_tune_pytorch.transformers.settings import Approach, QuantizationConfig


class NLPTrainer(transformers.Trainer):
    """`transformers.Trainer` with `quantize`.

    Attributes:
        tuning: What `quantize` found; None before it was called.
    """

    tuning: TuneResult | None = None

    def quantize(
        self,
        quant_config: QuantizationConfig | None = None,
        *,
        calib_dataloader: Iterable[Any] | None = None,
        eval_func: Callable[[nn.Module], Any] | None = None,
        train_func: Callable[[nn.Module], Any] | None = None,
        reporter: Any = None,
    ) -> nn.Module:
        """Replace the Trainer's model by its best low-precision form that meets the criteria, and return it.

        Look at `self.tuning` (a `TuneResult`) for the evidence. Where no candidate meets the criteria the model stays as it was, and is returned.

        Args:
            quant_config: How to quantize; None takes the defaults (static, within 1 %).
            calib_dataloader: Batches to calibrate on; None takes the training set (the evaluation set where there is none), in its own order.
            eval_func: Takes a model, returns a dict of metrics; None takes `self.evaluate`.
            train_func: For quantization-aware training: trains the model it gets in place; None takes `self.train`.
            reporter: As in `neural_tune.fit`.

        Raises:
            ConfigError: `evaluate` does not return the metrics that the criteria name, or there is no data.
            Exception: whatever the Trainer's own functions raise.
        """
        config = quant_config or QuantizationConfig()
        original = self.model
        self._set_signature_columns_if_needed()  # from the float model: a quantized one has no signature to read columns from
        metrics = config.constrained or (self._first_metric(eval_func),)
        names = [metric.name for metric in metrics]
        evaluate = eval_func or (lambda model: self._evaluated(model, original))
        is_static = config.approach is not Approach.DYNAMIC
        arguments: dict[str, Any] = {}
        if config.approach is Approach.TRAINING:
            arguments["train_func"] = train_func or (lambda model: self._trained(model, original))
        batches = calib_dataloader if calib_dataloader is not None else self._calibration_batches()
        try:
            self.tuning = fit(
                original,
                config.to_conf(metrics),
                calib_dataloader=batches if is_static else None,
                eval_dataloader=None if is_static else list(_first(batches)),
                eval_func=lambda model: _chosen(evaluate(model), names),
                framework="pytorch",
                reporter=reporter,
                **arguments,
            )
        finally:
            self._take(original)
        if self.tuning.accepted:
            self._take(QuantizedModel(self.tuning.model, original.config, main_input_name=original.main_input_name))
        return self.model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; a quantized one with its recipe and result, for `load_quantized` or plain `neural_tune.load`."""
        if not isinstance(self.model, QuantizedModel) or self.tuning is None:
            super().save_model(output_dir, _internal_call)
            return
        target = Path(output_dir or self.args.output_dir)
        self.tuning.save(target)
        self.model.config.save_pretrained(target)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(target)

    def _evaluated(self, model: nn.Module, original: Any) -> Mapping[str, Any]:
        with self._wearing(QuantizedModel(model, original.config, main_input_name=original.main_input_name)):
            found: Mapping[str, Any] = self.evaluate()
        return found

    def _trained(self, model: nn.Module, original: Any) -> None:
        wrapped = QuantizedModel(model, original.config, main_input_name=original.main_input_name, is_trainable=True)
        with self._wearing(wrapped):
            self.optimizer = self.lr_scheduler = None  # those of an earlier training hold the weights of another model
            self.train()
        self.optimizer = self.lr_scheduler = None

    @contextmanager
    def _wearing(self, model: Any) -> Iterator[None]:
        before = self.model
        self._take(model)
        try:
            yield
        finally:
            self._take(before)

    def _take(self, model: Any) -> None:
        self.model = self.model_wrapped = model
        self.accelerator.free_memory()  # it holds on to the models it has prepared

    def _first_metric(self, eval_func: Callable[[nn.Module], Any] | None) -> Metric:
        """Return the first number among what the evaluation says of the float model, beside loss and timings."""
        found = eval_func(self.model) if eval_func else self.evaluate()
        timings = ("_loss", "_runtime", "_per_second", "_time", "epoch")
        named = [name for name, value in found.items() if _is_number(value) and not str(name).endswith(timings)]
        if named:
            return Metric(str(named[0]))
        if "eval_loss" in found:
            return Metric("eval_loss", greater_is_better=False)
        raise ConfigError(
            f"evaluate returned {sorted(found)}, expected a metric: give the Trainer compute_metrics=, or QuantizationConfig(metrics=...)"
        )

    def _calibration_batches(self) -> Iterable[Mapping[str, Tensor]]:
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if dataset is None:
            raise ConfigError(
                "quantize needs data to calibrate on: give the Trainer a train_dataset or eval_dataset, or pass calib_dataloader="
            )
        hidden = {*self.label_names, "labels", "label", "label_ids"}
        # The loader of the evaluation does not shuffle, so that a run can be repeated.
        return [
            {name: value for name, value in batch.items() if name not in hidden and isinstance(value, Tensor)}
            for batch in _limited(self.get_eval_dataloader(dataset), 4096)
        ]


def _limited(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield batches until they hold `samples`: tokens are small, but a training set may be large."""
    seen = 0
    for batch in batches:
        yield batch
        seen += max((len(value) for value in batch.values() if isinstance(value, Tensor)), default=1)
        if seen >= samples:
            return


def _first(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield one batch as (inputs, nothing): approaches without calibration need one to capture the model and to measure speed."""
    for batch in batches:
        yield batch
        return


def _chosen(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigError(f"evaluate returned {sorted(found)}, but the criteria name {missing}: rename one of them")
    return {name: float(found[name]) for name in names}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
