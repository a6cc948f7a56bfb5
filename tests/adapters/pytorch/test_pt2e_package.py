"""AOTInductor packages: torch alone runs them, with the numbers of the compiled model, and an op that would run in float is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from neural_tune.errors import AdapterError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch import package  # noqa: E402
from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering  # noqa: E402
from neural_tune_pytorch.backends.pt2e import package as packaging  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lowering.probe().problem), reason="torch.compile finds no C++ compiler here"),
]
ADAPTER = PyTorchAdapter()
# What a user without neural_tune and torchao runs.
PLAIN = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
network = torch._inductor.aoti_load_package(sys.argv[1])
with torch.no_grad():
    outputs = [network(torch.from_numpy(np.load(path)))[0].tolist() for path in sys.argv[2:]]
assert not {"torchao", "neural_tune", "neural_tune_pytorch"} & set(sys.modules)
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module")
def artifact(networks, tmp_path_factory):
    batches = networks.images(batches=2)
    hold = ADAPTER.load(networks.small(), AdapterOptions(example=batches[0]))
    statistics = ADAPTER.calibrate(hold, batches, tmp_path_factory.mktemp("statistics"))
    candidate = TuningSpace.of(ADAPTER.query(hold)).preferred()
    return ADAPTER.save(ADAPTER.build(hold, candidate, statistics, 1), tmp_path_factory.mktemp("model"))


def test_torch_alone_runs_a_package_with_the_numbers_of_the_compiled_model(artifact, networks, tmp_path):
    path = package(artifact.parent, threads=1)
    assert path == artifact.with_name("model.aoti.pt2")
    assert set(artifact.parent.iterdir()) == {artifact, path}
    assert packaging.int8_kernels(path) == 4
    batches = [networks.images()[0], networks.images(count=7)[0]]
    files = [tmp_path / f"{number}.npy" for number in range(2)]
    for file, batch in zip(files, batches, strict=True):
        np.save(file, batch)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, path, *files],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    restored = ADAPTER.restore(artifact, 1)
    for found, batch in zip(json.loads(done.stdout.splitlines()[-1]), batches, strict=True):
        np.testing.assert_allclose(found, ADAPTER.run(restored, batch)[0], rtol=1e-5, atol=1e-6)


def test_a_package_in_which_ops_would_run_in_float_is_refused_and_removed(artifact, tmp_path, monkeypatch):
    copy = tmp_path / "model.pt2"
    copy.write_bytes(artifact.read_bytes())
    monkeypatch.setattr(packaging, "int8_kernels", lambda path: 2)
    with pytest.raises(AdapterError, match="4 int8 kernels were expected, the package would call 2"):
        package(copy)
    assert list(tmp_path.iterdir()) == [copy]


def test_a_package_that_computes_something_else_is_refused_and_removed(artifact, tmp_path, monkeypatch):
    copy = tmp_path / "model.pt2"
    copy.write_bytes(artifact.read_bytes())
    load = torch._inductor.aoti_load_package

    def damaged(path):
        network = load(path)
        return lambda *feed: [output * 1.01 for output in network(*feed)]

    monkeypatch.setattr(torch._inductor, "aoti_load_package", damaged)
    with pytest.raises(AdapterError, match=r"computes something else than the model \(outputs differ by 0\.01"):
        package(copy)
    assert list(tmp_path.iterdir()) == [copy]


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="found no file"):
        package(tmp_path)
