"""What quantization-aware training wins over post-training quantization at reduced bits: five seeds, equal-epoch float control.

    python benchmarks/tensorflow/qat_study.py --data ../shared/data --bits 4 --out qat_study.json

Per seed, from the same pretrained float model and on the same batches in the same order:

* control: float training for E epochs (so that "trained longer" is no advantage of QAT);
* ptq: fake_quant on the control, ranges by the MSE observer, no training;
* qat: fake_quant on the pretrained model, ranges by the MSE observer, E epochs.

Recovered = (qat - ptq) / (control - ptq). No processor has kernels for 4-bit activations, so all three are judged in fake_quant, which is exactly the
arithmetic of the grid. The pictures are those of `cifar10_jpeg`: one part trains, another is only looked at for the accuracy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.numerics.histogram import Histogram
from neural_tune.numerics.observers import Observed, find_range
from neural_tune.values import Observer
from neural_tune_tensorflow.qat_layers import Grid, WeightGrid
from neural_tune_tensorflow.qat_plan import LayerPlan, QatPlan, copied, rebuild

from neural_tune_tensorflow.runtime import tf  # isort: skip
import keras

MODEL, DATA = "resnet8_cifar10", "cifar10_jpeg"


def main() -> None:
    """Run the study and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of load_models.py")
    parser.add_argument("--bits", type=int, default=4, help="bits of weights and activations (first and last layer: 8)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to run the study in parts")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=2000, help="training pictures; the rest of 5,000 measures")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    models = _module(options.data)
    data = models.dataset(DATA)
    images, labels = models.prepare(MODEL, data["x_val"], "NHWC"), data["y_val"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    train, held_out = order[: options.train], order[options.train :]
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        started = time.perf_counter()
        row = _one_seed(models, images, labels, train, held_out, seed, options)
        rows.append({"seed": seed, **row, "seconds": round(time.perf_counter() - started, 1)})
        print(json.dumps(rows[-1]), flush=True)
    summary = _summary(rows, options)
    print(json.dumps(summary, indent=1))
    if options.out:
        options.out.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


def plan_of(model: Any, bits: int) -> QatPlan:
    """Return fake_quant on the weights and inputs of every convolution and Dense layer; first and last layer in 8 bits, as is usual."""
    weighted = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense | keras.layers.DepthwiseConv2D)
    ]
    ends = {weighted[0].name, weighted[-1].name}
    layers, tensors = {}, {}
    for layer in weighted:
        width = 8 if layer.name in ends else bits
        source = layer.input._keras_history.operation  # noqa: SLF001 - Keras has no public way to the producer
        tensor = f"{source.name}:{width}"
        axes = (-2, -1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (-1,)
        tensors[tensor] = Grid(bits=width, sign="auto")
        layers[layer.name] = LayerPlan(
            weights=(WeightGrid(variable="kernel", bits=width, channel_axes=axes),), reads=tensor
        )
    return QatPlan(layers=layers, tensors=tensors)


def quantized(model: Any, bits: int, samples: Any) -> Any:
    """Return `model` with fake_quant on ranges that the MSE observer takes from `samples`."""
    plan = plan_of(model, bits)
    trainee, ranges = rebuild(model, plan)
    names = [layer.name for layer in model.layers if layer.name in plan.layers]
    watch = keras.Model(model.input, [model.get_layer(name).input for name in names])
    values = dict(zip(names, (np.asarray(item, np.float32) for item in watch(samples, training=False)), strict=True))
    for name in names:
        tensor = plan.layers[name].reads
        seen = values[name]
        observed = Observed(float(seen.min()), float(seen.max()), int((seen == 0).sum()), Histogram.of(seen))
        low, high = find_range(observed, Observer.MSE, symmetric=False, levels=1 << plan.tensors[tensor].bits)
        ranges[tensor].set_range(low, high)
    return trainee


def _one_seed(
    models: Any, images: Any, labels: Any, train: Any, held_out: Any, seed: int, options: argparse.Namespace
) -> dict[str, float]:
    source = models.keras_model(MODEL)
    samples = images[train[:200]]
    control = copied(source, lambda layer: layer.__class__.from_config(layer.get_config()))
    _fit(control, images, labels, train, seed, options)
    float_accuracy = _accuracy(control, images, labels, held_out)
    ptq = _accuracy(quantized(control, options.bits, samples), images, labels, held_out)
    trainee = quantized(source, options.bits, samples)
    _fit(trainee, images, labels, train, seed, options)
    qat = _accuracy(trainee, images, labels, held_out)
    return {
        "float_start": _accuracy(source, images, labels, held_out),
        "control": float_accuracy,
        "ptq": ptq,
        "qat": qat,
        "recovered": (qat - ptq) / (float_accuracy - ptq),
    }


def _fit(model: Any, images: Any, labels: Any, train: Any, seed: int, options: argparse.Namespace) -> None:
    generator = np.random.default_rng(seed)
    size = 50
    steps = options.epochs * (len(train) // size)
    schedule = keras.optimizers.schedules.CosineDecay(options.rate, steps)
    model.compile(
        keras.optimizers.Adam(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    for _ in range(options.epochs):
        for chosen in np.array_split(generator.permutation(train), len(train) // size):
            model.train_on_batch(images[chosen], labels[chosen])


def _accuracy(model: Any, images: Any, labels: Any, chosen: Any) -> float:
    hits = [
        (np.asarray(model(images[part], training=False)).argmax(1) == labels[part]).sum()
        for part in np.array_split(chosen, max(1, len(chosen) // 200))
    ]
    return float(sum(hits) / len(chosen))


def _summary(rows: list[dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("float_start", "control", "ptq", "qat")}
    return {
        "model": MODEL,
        "data": DATA,
        "bits": options.bits,
        "epochs": options.epochs,
        "seeds": len(rows),
        **{name: round(value, 4) for name, value in means.items()},
        "recovered_of_means": round((means["qat"] - means["ptq"]) / (means["control"] - means["ptq"]), 3),
        "recovered_per_seed": [round(row["recovered"], 3) for row in rows],
    }


def _module(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("load_models", folder / "load_models.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"found no load_models.py in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
