"""The adapter's hold on the caller's module: a private float copy that can be called with an example. The caller's own object is never touched."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.evaluation import split_batch
from neural_tune.protocols import AdapterOptions
from neural_tune_pytorch import archive, inputs
from neural_tune_pytorch.backend import Feed, Source
from neural_tune_pytorch.calling import (
    Calling,
    Flat,
    InputInfo,
    Style,
    describe,
    flatten,
    parameters_of,
    required_names,
)

_HALVES = (torch.float16, torch.bfloat16, torch.float64)


def take(model: object, options: AdapterOptions) -> Source:
    """Return a private copy of `model`, float32 and in eval mode, with its calling convention found by one call.

    Raises:
        AdapterError: the module cannot be copied, or breaks on the example.
        CapabilityError: there is no example, or the module takes or returns what cannot be captured.
    """
    notes: list[str] = []
    module = _unwrapped(_as_module(model), notes)
    if not _is_exported(module):  # what an exported program hands out is new, and refuses to be copied
        module = copy_of(module).cpu()
    if any(tensor.dtype in _HALVES for tensor in _tensors_of(module)):
        notes.append(
            "weights in half or double precision were taken as float32; the int8 model computes what stays float in float32"
        )
        module = (_with_own_tensors(module) if _is_exported(module) else module).float()
    _eval(module)
    if module is not model and not _is_exported(module):
        module.requires_grad_(requires_grad=False)
    names, style, values = describe(module, _example(module, model, options))
    feed = tuple(_fitting(inputs.to_tensor(value, name)) for name, value in zip(names, values, strict=True))
    infos = tuple(
        InputInfo(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
        for name, tensor in zip(names, feed, strict=True)
    )
    calling = Calling(inputs=infos, style=style)
    with torch.inference_mode(False), _buffers_kept(module):
        trial = tuple(tensor.clone() for tensor in feed)  # the module may change it, and the example is the caller's
        versions = [tensor._version for tensor in trial]  # noqa: SLF001 - torch's own count of writes
        tensors, structure = flatten(_called(module, calling, trial))
    infos = tuple(
        replace(info, is_written=tensor._version != version)  # noqa: SLF001
        for info, tensor, version in zip(infos, trial, versions, strict=True)
    )
    if not tensors:
        raise CapabilityError("the module returns no tensor, expected at least one")
    calling = Calling(inputs=infos, style=style, outputs=structure)
    return Source(module=module, calling=calling, example=feed, notes=tuple(notes))


def input_names(model: object) -> tuple[str, ...]:
    """Return the names of a module's parameters, those without a default first; () for anything else than a module."""
    if not isinstance(model, nn.Module):
        return ()
    module = _unwrapped(model, [])
    required = required_names(module)
    return (*required, *(item.name for item in parameters_of(module) if item.name not in required))


def flat(source: Source) -> nn.Module:
    """Return the module behind the flat calling convention (it shares the weights of `source.module`)."""
    return (
        Flat(source.module, source.calling).eval()
        if not _is_exported(source.module)
        else Flat(source.module, source.calling)
    )


def copy_of(module: nn.Module) -> nn.Module:
    """Return an independent copy: a deep copy, or one by structure for modules that refuse to be copied.

    A copy by structure has its own modules, parameters, buffers and hooks; anything else that a module holds on to is shared.
    """
    try:
        return copy.deepcopy(module)
    except Exception:  # noqa: BLE001 - a module may refuse in any way it likes
        return _by_structure(module, {})


def fingerprint(module: nn.Module) -> str:
    """Return a hash of the parameters and buffers, names included, that is the same in every process."""
    total = hashlib.sha256()
    state = itertools.chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    for name, tensor in sorted(state, key=lambda item: item[0]):
        values = tensor.detach().cpu().contiguous()
        total.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        total.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return total.hexdigest()


def _as_module(model: object) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, torch.export.ExportedProgram):
        return model.module(check_guards=False)
    if isinstance(model, str | Path):
        try:
            with archive.data_only(Path(model)):
                return torch.export.load(str(model)).module(check_guards=False)
        except AdapterError:
            raise
        except Exception as error:
            raise AdapterError(
                f"{model}: torch.export cannot load it ({type(error).__name__}: {first_line(error)})"
            ) from error
    raise AdapterError(
        f"found a {type(model).__name__}, expected a torch.nn.Module, an ExportedProgram or a path to a .pt2 file"
    )


def _unwrapped(module: nn.Module, notes: list[str]) -> nn.Module:
    """Take off what torch.compile and data parallelism put around a module."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            notes.append("the module came from torch.compile; its original was taken")
            module = inner
        elif isinstance(module, parallel):
            notes.append(f"{type(module).__name__} was taken off; one CPU process runs the model")
            module = module.module
        else:
            return module


def _by_structure(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    kind: Any = type(module)
    twin: nn.Module = kind.__new__(kind)
    memo[id(module)] = twin
    attributes = dict(module.__dict__)
    for name in ("_parameters", "_buffers"):
        attributes[name] = {key: _twin(value, memo) for key, value in module.__dict__[name].items()}
    attributes["_modules"] = {
        key: None if child is None else _by_structure(child, memo)
        for key, child in module._modules.items()  # noqa: SLF001 - there is no other way in
    }
    for name, value in attributes.items():
        if name.endswith("_hooks") or name == "_non_persistent_buffers_set":
            attributes[name] = copy.copy(value)
    twin.__dict__.update(attributes)
    return twin


def _twin(tensor: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    """Return a copy of a parameter or buffer; tied ones stay tied."""
    if tensor is None:
        return None
    if id(tensor) not in memo:
        values = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
    return memo[id(tensor)]


def _with_own_tensors(module: nn.Module) -> nn.Module:
    """Return an exported module whose tensors are its own: it shares them with the caller's program, where `float()` would change them too."""
    twin, memo = copy.copy(module), dict[int, Any]()
    for part in twin.modules():
        for table in (part._parameters, part._buffers):  # noqa: SLF001 - there is no other way in
            table.update({name: _twin(tensor, memo) for name, tensor in table.items()})
    return twin


def _eval(module: nn.Module) -> None:
    if _is_exported(module):
        return  # exported graphs have their mode built in and refuse .eval()
    module.eval()


def _is_exported(module: nn.Module) -> bool:
    return isinstance(module, torch.fx.GraphModule) and hasattr(module, "_in_spec")


def _example(module: nn.Module, model: object, options: AdapterOptions) -> Any:
    if options.example is not None:
        return inputs.members(split_batch(options.example, required_names(module))[0])
    program = model if isinstance(model, torch.export.ExportedProgram) else None
    if program is not None and program.example_inputs is not None:
        arguments, keywords = program.example_inputs
        return (
            {**dict(zip(required_names(module), arguments, strict=False)), **keywords} if keywords else tuple(arguments)
        )
    raise CapabilityError(
        "a PyTorch module is captured by calling it once, and there is no batch to call it with: pass calib_dataloader= "
        "(or eval_dataloader=), or example= in the AdapterOptions"
    )


def _fitting(tensor: Tensor) -> Tensor:
    """Return float inputs as float32, which is what the copy computes in."""
    return tensor.float() if tensor.dtype in _HALVES else tensor


def _called(module: nn.Module, calling: Calling, feed: Feed) -> Any:
    try:
        with torch.no_grad():
            return calling.call(module, feed)
    except (DataError, CapabilityError):
        raise
    except Exception as error:
        how = "by keyword" if calling.style is not Style.POSITIONAL else "in this order"
        raise AdapterError(
            f"the float model breaks on the first batch, inputs {list(calling.names)} {how} of shapes {inputs.shapes_of(feed)}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give buffers that a call changes (counters, caches) their values back: a trial call is none of the user's."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers() if not buffer.is_inference()]  # noqa: SLF001
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, values in before:
                if buffer._version != version:  # noqa: SLF001
                    buffer.copy_(values)


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [item for item in (*module.parameters(), *module.buffers()) if item.is_floating_point()]


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
