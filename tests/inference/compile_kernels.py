"""Compiles the GPU kernels for a compute capability, without a GPU: `python -m tests.inference.compile_kernels 90`.

Prints one line per kernel: its name and the shared memory that a program of it takes, in bytes.
"""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.inference.engine.cuda import kernels

SIZES = {
    "GROUP": 4, "GROUP_PAD": 16, "HEAD": 128, "HEAD_PAD": 128, "BLOCK": 16, "TILE": 64, "QUERIES": 64,
    "SHARES": 8, "SHARES_PAD": 8, "PRODUCT": tl.bfloat16,
}  # fmt: skip
TYPES = {
    "scale": "fp32", "tables_ptr": "*i32", "lengths_ptr": "*i32", "starts_ptr": "*i32", "peaks_ptr": "*fp32",
    "sums_ptr": "*fp32", "shares_ptr": "*fp32", "q_ptr": "*bf16", "k_ptr": "*bf16", "v_ptr": "*bf16", "o_ptr": "*bf16",
}  # fmt: skip


def main() -> None:
    """Compile each kernel for a Llama-shaped model in bf16."""
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    for kernel in (kernels.decode_share, kernels.join_shares, kernels.prefill_tile):
        types = {**TYPES, "o_ptr": "*fp32"} if kernel is kernels.decode_share else TYPES
        signature = {name: "constexpr" if name in SIZES else types.get(name, "i32") for name in kernel.arg_names}
        sizes = {name: value for name, value in SIZES.items() if name in kernel.arg_names}
        compiled = triton.compile(ASTSource(kernel, signature, sizes), target=target)
        print(kernel.__name__, compiled.metadata.shared)


if __name__ == "__main__":
    main()
