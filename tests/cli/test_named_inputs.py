"""`init` and `inspect` of a module that is captured by calling it: a shape is asked for by the name of the argument."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neural_tune.cli import main

pytest.importorskip("torch", reason='needs: pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs: pip install "neural-tune[pytorch]"')

MODULES = """
import torch


class Picture(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)

    def forward(self, image, scale=None):
        return self.conv(image).flatten(1)


class Batch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, batch):
        return self.linear(batch["left"] + batch["right"])
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nt_named_inputs.py").write_text(MODULES)


@pytest.mark.parametrize("command", ["init", "inspect"])
def test_a_missing_shape_is_asked_for_by_the_name_of_the_argument(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "nt_named_inputs:Picture"]) == 2
    err = capsys.readouterr().err
    assert "(image, scale)" in err
    assert "--shape image=1,3,224,224" in err


@pytest.mark.parametrize("command", ["init", "inspect"])
def test_a_wrong_name_is_told_instead_of_what_the_module_says(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "nt_named_inputs:Picture", "--shape", "x=1,1,8,8"]) == 2
    assert "--shape: no input 'x', expected image, scale" in capsys.readouterr().err
    assert not Path("job.yaml").exists()


def test_a_wrong_shape_of_the_right_name_is_the_failure_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "nt_named_inputs:Picture", "--shape", "image=1,2,8,8"]) == 3
    assert "the float model breaks on the first batch" in capsys.readouterr().err


def test_names_that_are_keys_of_one_mapping_are_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["--shape", "left=1,8", "--shape", "right=1,8", "--json"]
    assert main(["inspect", "nt_named_inputs:Batch", *shapes]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == ["left", "right"]
