"""Kernels in C++ for x86 CPUs: a whole step in one call, behind the same interface as plain PyTorch."""
