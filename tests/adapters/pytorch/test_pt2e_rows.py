"""A batch may be padded only where a row's outputs do not depend on the rows beside it."""

from __future__ import annotations

import pytest

from neural_tune.protocols import AdapterOptions

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402


class Centred(torch.nn.Module):
    """Takes the mean over the batch away: every row depends on all others."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(x - x.mean(0, keepdim=True))


@pytest.mark.parametrize(
    "example", [torch.ones(1, 8), torch.zeros(4, 8), torch.randn(6, 8)], ids=["one row", "equal rows", "random rows"]
)
@pytest.mark.parametrize("is_bound", [True, False], ids=["bound", "free"])
def test_rows_that_depend_on_each_other_are_found_whatever_the_example_is(example, is_bound):
    module = Centred() if is_bound else torch.nn.Sequential(torch.nn.Linear(8, 4))
    hold = PyTorchAdapter().load(module, AdapterOptions(example=example, backend="pt2e"))
    assert hold.captured.has_free_rows is not is_bound
