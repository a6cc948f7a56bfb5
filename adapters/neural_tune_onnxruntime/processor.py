"""What the processor's integer instructions decide: which number formats are fast, and which overflow."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The part of a processor that matters here.

    Attributes:
        name: Instruction set in words, such as "x86 avx512_vnni".
        signed_activations: True where int8 activations are the fast ones (ARM), False where uint8 is (x86).
        saturates: True where a uint8 x int8 product sum saturates in int16, so that weights need one bit less (x86 before VNNI).
        dots: True where x86 adds up four products of uint8 and int8 in one instruction (VNNI).
        tiles: True where x86 multiplies whole tiles of them (AMX).
    """

    name: str
    signed_activations: bool = False
    saturates: bool = False
    dots: bool = False
    tiles: bool = False

    @classmethod
    def detect(cls) -> Processor:
        """Return the processor this process runs on."""
        return _detect()


def classify(machine: str, flags: frozenset[str]) -> Processor:
    """Return the processor of a machine name (as `platform.machine`) and its feature flags.

    On x86 the activations must be uint8 and the weights int8 (measured: 3.4x against 1.3x for int8 activations on ResNet), without VNNI
    with reduced range, as the runtime's documentation says; on ARM int8 for both. The last two were not measured by us.
    """
    machine = machine.lower()
    if machine in ("x86_64", "amd64", "i386", "i686"):
        for flag in ("amx_int8", "avx512_vnni", "avx_vnni"):
            if flag in flags:
                return Processor(name=f"x86 {flag}", dots=True, tiles=flag == "amx_int8")
        widest = next((flag for flag in ("avx512bw", "avx2", "avx") if flag in flags), "sse2")
        return Processor(name=f"x86 {widest}", saturates=True)
    if machine in ("aarch64", "arm64"):
        widest = next((flag for flag in ("i8mm", "asimddp") if flag in flags), "neon")
        return Processor(name=f"arm64 {widest}", signed_activations=True)
    return Processor(name=machine or "unknown", saturates=False)


@cache
def _detect() -> Processor:
    return classify(platform.machine(), _flags())


def _flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():  # macOS and Windows name no flags there; an old processor is the safe guess
        return frozenset()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()
