"""How precisely a network computes: what is asked for, and what the machine is good at.

Precision is no part of an encoder's fingerprint: vectors made in different precisions
are nearly the same and lie in one collection. `benchmarks/precision.py` shows it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import EncoderError

PRECISIONS = ("auto", "float32", "bfloat16", "int8")
CPU_INFO = Path("/proc/cpuinfo")
NATIVE_ON_X86 = {"avx512_bf16", "amx_bf16"}
NATIVE_ON_ARM = {"bf16"}


def choose(asked: str, device: str) -> str:
    """What to compute in on "cpu", "cuda" or "mps", where one of PRECISIONS is asked for.

    "float32", "bfloat16", "int8" or, on an NVIDIA GPU, "float16". Raises EncoderError
    for a precision that there is not, or not there.
    """
    if asked not in PRECISIONS:
        raise EncoderError(
            f"There is no precision {asked!r}: choose from {', '.join(PRECISIONS)}."
        )
    if asked == "int8" and device != "cpu":
        raise EncoderError(
            f"int8 runs on the CPU and not on {device}: leave out --precision, or say "
            "--device cpu as well."
        )
    if asked != "auto":
        return asked
    if device == "cuda":
        return "float16"
    if device == "cpu" and bfloat16_is_native():
        return "bfloat16"
    return "float32"


def bfloat16_is_native() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself.

    On others torch imitates it, slower than float32. Apple's processors are among
    those: torch has no such kernels for them.
    """
    found = capabilities()
    on_arm = sys.platform == "linux" and bool(found & NATIVE_ON_ARM)
    return on_arm or bool(found & NATIVE_ON_X86)


def capabilities() -> set[str]:
    """What the processor can do, by the names that torch and Linux have for it."""
    import torch

    try:
        found = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch
        return _capabilities_in(CPU_INFO)
    return {name for name, there in found.items() if there is True}


def _capabilities_in(file: Path) -> set[str]:
    """The flags in Linux's /proc/cpuinfo; none where there is no such file."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return set()
    flags = (line.split(":")[1] for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())
