"""Models and inputs of every usual form come in, the caller's module stays as it was, and answers keep their form."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest

from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, FrozenMap

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from torch import nn  # noqa: E402

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering  # noqa: E402
from neural_tune_pytorch.calling import Outputs, flatten, unflatten  # noqa: E402

REFERENCE = FrozenMap({"compile": False})


def options(example, **more):
    return AdapterOptions(example=example, extra=REFERENCE, **more)


def load(module, example, **more):
    return PyTorchAdapter().load(module, options(example, **more))


def float_network(module, example, **more):
    adapter = PyTorchAdapter()
    return adapter, adapter.build(load(module, example, **more), FLOAT_CANDIDATE, None, None)


def test_a_module_in_train_mode_is_handled_and_stays_in_train_mode(networks):
    module = networks.small().train()
    example = networks.images()[0]
    statistics_before = module.bn1.running_mean.clone()
    adapter, built = float_network(module, example)
    with torch.no_grad():
        expected = networks.small()(torch.from_numpy(example)).numpy()
    np.testing.assert_allclose(adapter.run(built, example)[0], expected, rtol=1e-5, atol=1e-6)
    assert module.training
    assert module.bn1.training
    assert torch.equal(module.bn1.running_mean, statistics_before)
    assert all(parameter.requires_grad for parameter in module.parameters())


class Stubborn(nn.Module):
    """Refuses deepcopy, and holds a parameter twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def __deepcopy__(self, memo):
        raise TypeError("cannot copy")

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_a_module_that_refuses_deepcopy_is_copied_by_structure():
    torch.manual_seed(0)
    module, example = Stubborn(), torch.randn(4, 8)
    hold = load(module, example)
    copy = hold.source.module
    assert copy is not module
    assert copy.first.weight is copy.second.weight, "tied weights stay tied"
    assert copy.first.weight.data_ptr() != module.first.weight.data_ptr()
    with torch.no_grad():
        copy.first.weight.zero_()
    assert module.first.weight.abs().sum() > 0


def test_ops_over_one_weight_share_a_choice():
    space = TuningSpace.of(PyTorchAdapter().query(load(Stubborn(), torch.randn(4, 8))))
    assert [group.ops for group in space.groups] == [("first", "second")]


def test_what_torch_compile_and_data_parallel_put_around_a_module_is_taken_off(networks):
    example = networks.images()[0]
    plain = load(networks.small(), example)
    adapter = PyTorchAdapter()
    for wrapped in (torch.compile(networks.small()), nn.DataParallel(networks.small())):
        hold = load(wrapped, example)
        assert [op.name for op in adapter.query(hold).ops] == [op.name for op in adapter.query(plain).ops]
        assert any("taken" in note for note in adapter.query(hold).notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_weights_become_float32_with_a_note(networks, dtype):
    module, example = networks.small().to(dtype), torch.from_numpy(networks.images()[0])
    adapter, built = float_network(module, example.to(dtype))
    with torch.no_grad():
        expected = networks.small().to(dtype).float()(example.to(dtype).float())
    assert module.conv1.weight.dtype is dtype
    np.testing.assert_allclose(adapter.run(built, example.to(dtype))[0], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert "float32" in adapter.query(load(module, example.to(dtype))).notes[0]


def test_native_models_are_called_and_answer_like_the_original(networks):
    module = networks.perceptron()
    left, right = torch.randn(4, 16), torch.randn(4, 16)
    adapter, built = float_network(module, {"left": left, "right": right})
    native = adapter.native(built)
    with torch.no_grad():
        expected = module(left, right)
    for answer in (
        native(left, right),
        native(left=left, right=right),
        native({"right": right, "left": left}),
        native(left.numpy(), right=right),
    ):
        assert list(answer) == ["logits", "sum"]
        torch.testing.assert_close(answer["logits"], expected["logits"])
    assert native.eval() is native
    assert native.train().training is False
    assert not native(left, right)["logits"].requires_grad
    assert native(left[:3], right[:3])["logits"].shape == (3, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"left": np.zeros((4, 16), np.float32)}, "expected the names"),
        ((np.zeros((4, 16), np.float32),) * 3, "found 3 positional"),
        ((np.zeros((4, 16), np.float32), np.zeros((4, 16), np.int64)), "expected torch.float32"),
        ((np.zeros((4, 16), np.float32), np.zeros((4, 16, 1), np.float32)), "axes"),
    ],
)
def test_inputs_that_do_not_fit_are_data_errors(networks, inputs, message):
    adapter, built = float_network(networks.perceptron(), (torch.randn(4, 16), torch.randn(4, 16)))
    with pytest.raises(DataError, match=message):
        adapter.run(built, inputs)


class Pair(NamedTuple):
    a: object
    b: object


class SequenceClassifierOutput(OrderedDict):
    """A mapping of a name that transformers knows."""


def test_outputs_of_every_form_come_back():
    x, y = torch.ones(2), torch.zeros(3)
    for value in (x, (x, y), [x, (y, x)], {"a": x, "b": [y]}, (x, None, 3)):
        tensors, structure = flatten(value)
        again = unflatten(tensors, structure)
        assert type(again) is type(value)
        assert flatten(again)[1] == structure


def test_named_outputs_of_a_class_that_is_not_at_hand_answer_by_name_and_number():
    value = unflatten((torch.ones(2),), ["NoSuchOutput", [["logits", ["tensor", 0]]]])
    assert isinstance(value, Outputs)
    assert torch.equal(value.logits, value[0])
    with pytest.raises(AttributeError):
        _ = value.hidden_states


def test_a_saved_model_cannot_name_a_class_to_be_imported():
    """Only output classes of transformers are ever looked up; anything else is plain data."""
    value = unflatten((torch.ones(2),), ["PreTrainedModel", [["x", ["tensor", 0]]]])
    assert isinstance(value, Outputs)


class DataDependent(nn.Module):
    """A branch on a value: nothing can be exported."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_model_that_cannot_be_exported_names_what_stopped_it():
    with pytest.raises(
        CapabilityError,
        match=r"torch\.export cannot capture the model.*if x\.sum\(\) > 0|torch\.export cannot capture.*data-dependent",
    ):
        load(DataDependent(), torch.ones(2, 4), backend="pt2e")


def test_the_ipex_backend_is_pt2e_and_says_so(networks):
    hold = load(networks.small(), networks.images()[0], backend="ipex")
    assert hold.backend.name == "pt2e"
    assert any("ipex" in note for note in PyTorchAdapter().query(hold).notes)


def test_without_data_the_message_says_what_to_pass(networks):
    with pytest.raises(CapabilityError, match="calib_dataloader"):
        PyTorchAdapter().load(networks.small(), AdapterOptions())


def test_a_model_that_breaks_on_the_first_batch_is_an_adapter_error(networks):
    with pytest.raises(AdapterError, match="breaks on the first batch"):
        load(networks.small(), torch.randn(2, 5, 8, 8))


@pytest.mark.parametrize("field", ["backend", "device", "quant_format"])
def test_options_that_do_not_exist_are_refused(networks, field):
    with pytest.raises(CapabilityError, match="no such thing"):
        PyTorchAdapter().load(networks.small(), options(networks.images()[0], **{field: "no such thing"}))


def test_an_approach_that_pt2e_does_not_know_is_refused(networks):
    hold = load(networks.small(), networks.images()[0], backend="pt2e", approach="no such thing")
    with pytest.raises(CapabilityError, match="offers static, dynamic, auto, weight_only, qat"):
        PyTorchAdapter().query(hold)


def test_exported_programs_and_their_files_are_taken(networks, tmp_path):
    example = torch.from_numpy(networks.images()[0])
    program = torch.export.export(
        networks.small(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False
    )
    torch.export.save(program, tmp_path / "model.pt2")
    for model in (program, tmp_path / "model.pt2"):
        adapter, built = float_network(model, example)
        with torch.no_grad():
            expected = networks.small()(example).numpy()
        np.testing.assert_allclose(adapter.run(built, example)[0], expected, rtol=1e-5, atol=1e-6)


def test_an_exported_program_in_half_precision_stays_as_it_is():
    program = torch.export.export(nn.Linear(8, 4).half(), (torch.randn(2, 8).half(),))
    weight = program.state_dict["weight"].clone()
    adapter, built = float_network(program, torch.randn(2, 8))
    assert adapter.run(built, np.zeros((2, 8), np.float32))[0].dtype == np.float32
    assert program.state_dict["weight"].dtype is torch.float16
    assert torch.equal(program.state_dict["weight"], weight)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_inside_a_model_file_is_never_run(networks, tmp_path):
    example, trap = torch.from_numpy(networks.images()[0]), tmp_path / "owned"
    torch.export.save(torch.export.export(networks.small(), (example,), strict=False), tmp_path / "sound.pt2")
    adapter, built = float_network(networks.small(), example)
    saved = adapter.save(built, tmp_path / "saved")
    for number, source in enumerate((tmp_path / "sound.pt2", saved)):
        poisoned = tmp_path / f"poisoned{number}.pt2"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(poisoned, "w", zipfile.ZIP_STORED) as new:
            for item in old.infolist():
                is_sample = "sample_inputs" in item.filename
                new.writestr(item.filename, pickle.dumps(Payload(str(trap))) if is_sample else old.read(item))
        for load_it in (adapter.restore, lambda path: load(str(path), example)):
            with pytest.raises(AdapterError):
                load_it(poisoned)
            assert not trap.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("kind", ["opaque_obj_0", "custom_obj_0"])
def test_pickled_constants_are_refused_by_name(networks, tmp_path, kind):
    example = torch.from_numpy(networks.images()[0])
    adapter, built = float_network(networks.small(), example)
    with zipfile.ZipFile(adapter.save(built, tmp_path), "a") as file:
        file.writestr(f"{file.namelist()[0].split('/')[0]}/data/constants/{kind}", pickle.dumps(0))
    with pytest.raises(AdapterError, match="pickled objects"):
        adapter.restore(tmp_path / "model.pt2")


def test_products_with_a_constant_matrix_are_linears_and_batch_norms_are_folded():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
            self.v = nn.Parameter(torch.randn(6, 5))
            self.fc, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7)

        def forward(self, x):
            x = torch.addmm(self.b, x, self.w).tanh()
            return self.norm(self.fc((x @ self.v).tanh()))

    torch.manual_seed(0)
    module, example = Products().eval(), torch.randn(4, 8)
    hold = load(module, example)
    adapter = PyTorchAdapter()
    assert [op.type for op in adapter.query(hold).ops] == ["linear", "tanh", "linear", "tanh", "linear"]
    with torch.no_grad():
        expected = module(example).numpy()
    found = adapter.run(adapter.build(hold, FLOAT_CANDIDATE, None, None), example)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_where_nothing_can_be_compiled_the_next_backend_is_taken_with_the_reason(monkeypatch):
    problem = lowering.Probe(convolution=False, linear=False, dynamic=False, problem="no compiler here")
    monkeypatch.setattr(lowering, "probe", lambda: problem)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    hold = PyTorchAdapter().load(model, AdapterOptions(example=torch.zeros(2, 8)))
    assert hold.backend.name == "fx"
    assert any("no compiler here" in note for note in hold.notes)
    named = PyTorchAdapter().load(model, AdapterOptions(example=torch.zeros(2, 8), backend="pt2e"))
    assert named.backend.name == "pt2e"
    uncompiled = AdapterOptions(example=torch.zeros(2, 8), extra=FrozenMap({"compile": False}))
    assert PyTorchAdapter().load(model, uncompiled).backend.name == "pt2e"
