"""The adapter: everything numerical is the toy's, what differs is whose models it takes."""

from __future__ import annotations

from dataclasses import replace

from neural_tune.errors import AdapterError
from neural_tune.protocols import AdapterOptions
from neural_tune.testing import ToyAdapter
from neural_tune.testing.toy import ToyHold
from neural_tune.values import Capability
from nt_plugin_example.model import ExampleModel


class ExampleAdapter(ToyAdapter):
    """The protocol for `ExampleModel` objects."""

    name = "example"

    def accepts(self, model: object) -> bool:
        """Return whether `model` is an ExampleModel."""
        return isinstance(model, ExampleModel)

    def load(self, model: object, options: AdapterOptions) -> ToyHold:
        """Return a copy of the model."""
        if not self.accepts(model):
            raise AdapterError(f"example: found a {type(model).__name__}, expected an ExampleModel")
        return super().load(model, options)

    def query(self, model: ToyHold) -> Capability:
        """Return the toy's capability under this adapter's name."""
        return replace(super().query(model), framework=self.name)
