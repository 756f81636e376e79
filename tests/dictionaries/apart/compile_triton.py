"""Compile every kernel for NVIDIA GPUs of two generations; needs no GPU. Prints the size of each machine code."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saeworks.dictionaries.kernels import triton_kernels as kernels

FLOATS, INTS, N, F = "*fp32", "*i64", "i32", "fp32"
SIGNATURES = {
    "_bag": ((FLOATS, INTS, INTS, FLOATS, FLOATS, N), {"rows": 16, "columns": 256}),
    "_row_dots": ((FLOATS, INTS, FLOATS, INTS, FLOATS, N, N), {"rows": 16, "columns": 256}),
    "_remove_parallel": ((FLOATS, FLOATS, N), {"columns": 4096}),
    "_normalise": ((FLOATS, N, F), {"columns": 4096}),
}

for name, (types, constants) in SIGNATURES.items():
    kernel = getattr(kernels, name)
    arguments = [a for a in kernel.arg_names if a not in constants]
    signature = dict(zip(arguments, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        print(name, capability, len(made.asm["cubin"]))
