"""The tasks of the benchmark, laid out as `contract.Task` folders below the cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from contract import CALIBRATION_SAMPLES, Task

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
SHARED_DATA = HERE.parents[2] / "shared" / "data"


class MissingTaskError(Exception):
    """A task cannot be laid out here; the message says why."""


def prepare(name: str) -> Task:
    """Return the task, laid out on first use.

    Raises:
        MissingTaskError: unknown, or its data or model cannot be had.
    """
    if name not in TASKS:
        raise MissingTaskError(f"no task {name!r}; expected some of {', '.join(TASKS)}")
    if not SHARED_DATA.is_dir():
        raise MissingTaskError("no folder ../shared/data beside the project")
    folder = CACHE / "tasks" / name
    if not (folder / "task.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        TASKS[name](name, folder).write()
    return Task.read(folder)


def _digits(name: str, folder: Path) -> Task:
    data = SHARED_DATA / "tasks"
    source = _vit() if name == "t150" else data / f"{name}.onnx"
    shutil.copyfile(source, folder / "model.onnx")
    with np.load(data / "digits_calib.npz") as calibration, np.load(data / "digits_val.npz") as validation:
        return Task(
            name=name,
            folder=folder,
            calibration={"x": calibration["x"][:CALIBRATION_SAMPLES].astype(np.float32) / 255},
            inputs={"x": validation["x"].astype(np.float32) / 255},
            labels=validation["y"],
            metric="top1",
            loss=0.005,
            is_relative=False,
            is_transformer=name == "t150",
            batches=(1, 32),
        )


def _vit() -> Path:
    model = CACHE / "t150" / "t150.onnx"
    if not model.exists():
        subprocess.run([sys.executable, str(HERE / "make_vit_task.py")], check=True)
    return model


def _resnet20(name: str, folder: Path) -> Task:
    models = _load_models()
    shutil.copyfile(models.onnx_path("resnet20_cifar10"), folder / "model.onnx")
    data = models.dataset("cifar10")
    return Task(
        name=name,
        folder=folder,
        calibration={"input": models.prepare("resnet20_cifar10", data["x_calib"][:CALIBRATION_SAMPLES])},
        inputs={"input": models.prepare("resnet20_cifar10", data["x_val"])},
        labels=data["y_val"].ravel().astype(np.int64),
        metric="top1",
        loss=0.01,
        is_relative=True,
        is_transformer=False,
        batches=(1, 32),
    )


def _minilm(name: str, folder: Path) -> Task:
    _export_minilm(folder / "model.onnx")
    data = _load_models().dataset("stsb")
    names = ("input_ids", "attention_mask")
    return Task(
        name=name,
        folder=folder,
        calibration={key: data[f"{key}_calib"][:CALIBRATION_SAMPLES].astype(np.int64) for key in names},
        inputs={key: data[f"{key}_val"].astype(np.int64) for key in names},
        labels=data["y_val"].astype(np.float64),
        metric="pair_spearman",
        loss=0.01,
        is_relative=True,
        is_transformer=True,
        batches=(8,),
    )


def _export_minilm(target: Path) -> None:
    """Export with torch in a child; its exporter needs onnxscript, which goes into a folder of its own in the cache."""
    extra = CACHE / "onnxscript"
    if not extra.is_dir():
        partial = extra.with_name("onnxscript.partial")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(partial),
            "onnxscript",
        ]
        subprocess.run(command, check=True)
        partial.rename(extra)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import load_models; load_models.export_onnx('minilm_stsb', sys.argv[2])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(extra), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(SHARED_DATA), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MissingTaskError(f"minilm_stsb cannot be exported: {done.stderr.strip()[-800:]}")


def _load_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load_models", SHARED_DATA / "load_models.py")
    if spec is None or spec.loader is None:
        raise MissingTaskError("no load_models.py in ../shared/data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TASKS: dict[str, Callable[[str, Path], Task]] = {
    "t20": _digits,
    "t60": _digits,
    "t150": _digits,
    "resnet20": _resnet20,
    "minilm": _minilm,
}
