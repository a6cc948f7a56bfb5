"""The JSON Schema for editors says what the validator says: on good jobs, on bad ones, and on everything in between that a mutation makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune.editor_schema import editor_schema
from neural_tune.job_schema import Findings, check
from neural_tune.yaml_document import Document

jsonschema = pytest.importorskip("jsonschema", reason="needs: pip install --group test")

LOADER = {"batch_size": 2, "dataset": {"npz": {"path": "d.npz", "x": "x"}}, "transform": {"Cast": {"dtype": "int8"}}}
FULL: dict[str, Any] = {
    "version": 1.0,
    "device": "cpu",
    "model": {"path": "m.onnx", "name": "m", "framework": "onnxruntime", "inputs": "a, b", "outputs": ["c"]},
    "quantization": {
        "approach": "post_training_static_quant",
        "calibration": {"sampling_size": [10], "dataloader": {**LOADER, "last_batch": "discard", "shuffle": True}},
        "model_wise": {"activation": {"algorithm": "minmax"}},
        "op_wise": {"conv": {"weight": {"scheme": "sym"}}},
        "exclude": [],
        "recipes": {"bias_correction": True},
        "reduce_range": False,
        "train": {"function": "a:b"},
    },
    "evaluation": {
        "accuracy": {"metric": {"topk": 1}, "dataloader": LOADER, "threads": 2, "iteration": -1},
        "performance": {"warmup": 0, "iteration": -1, "seconds": 1.5, "configs": {"cores_per_instance": 2}},
    },
    "tuning": {
        "strategy": {"name": "auto", "trials": 3},
        "accuracy_criterion": {"relative": "1%", "metrics": {"topk": {"absolute": 0.5, "higher_is_better": True}}},
        "multi_objectives": {"objective": ["size", "latency"], "weight": [1, 2], "higher_is_better": [False, False]},
        "exit_policy": {"timeout": 0, "max_trials": 3, "performance_only": False},
        "random_seed": 3,
        "workspace": {"path": "w"},
        "executor": {"name": "process", "workers": 2},
        "tensorboard": True,
    },
}


def is_valid(job: Any) -> bool:
    """Return what the validator's table says; files and names are not looked up."""
    findings = Findings(Document(data=job, name="job"))
    check(findings)
    return not findings.errors


VALIDATOR = jsonschema.Draft202012Validator(editor_schema())


def test_it_is_a_json_schema_and_takes_a_full_job() -> None:
    jsonschema.Draft202012Validator.check_schema(editor_schema())
    assert is_valid(FULL)
    VALIDATOR.validate(FULL)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths of everything in a job, down to where names and options are the user's own."""
    if path and path[-1] in ("dataset", "transform"):
        return []  # what is in them is known to the reader of the job only, and has a test of its own
    if path and path[-1] in ("op_wise", "model_wise", "recipes", "strategy", "metric"):
        return [path]
    inner = value.items() if isinstance(value, dict) else []
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


PLACES = [place for place in places(FULL) if place]
# 1.0 is an integer to JSON Schema and none to us; a list of true and false is no list of numbers to either.
SCALARS = [None, True, False, 0, 1, -1, 7, 0.5, -0.5, "", "x", "5%", "-5%", "static", "qat", "rollover", "local", "x y"]
OTHERS = [[], [1], ["a"], [True], [0.5], [""], {}, {"a": 1}, {"path": "p"}, {"name": "n"}, {"relative": "x"}]
VALUES = st.sampled_from([*SCALARS, *OTHERS])


@settings(max_examples=600, deadline=None, derandomize=True)
@given(place=st.sampled_from(PLACES), value=VALUES, is_renamed=st.booleans(), is_removed=st.booleans())
def test_validator_and_schema_agree_on_every_mutation(
    place: tuple, value: Any, is_renamed: bool, is_removed: bool
) -> None:
    job = copy.deepcopy(FULL)
    here = job
    for key in place[:-1]:
        here = here[key]
    if is_removed:
        del here[place[-1]]
    elif is_renamed:
        here[f"{place[-1]}s"] = here.pop(place[-1])
    else:
        here[place[-1]] = value
    assert VALIDATOR.is_valid(job) == is_valid(job), (
        place,
        value,
        [error.message for error in VALIDATOR.iter_errors(job)],
    )


def test_kinds_of_datasets_and_their_options_are_completed() -> None:
    kinds = editor_schema()["$defs"]["dataset"]["properties"]
    assert set(kinds["npz"]["properties"]) == {"path", "x", "y"}
    job = copy.deepcopy(FULL)
    job["evaluation"]["accuracy"]["dataloader"]["dataset"] = {"npz": {"path": "d.npz", "z": "x"}}
    assert not VALIDATOR.is_valid(job)
