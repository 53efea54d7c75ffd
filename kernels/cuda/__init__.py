"""CUDA C++ kernels: `.cu` files, compiled when they are first used, for this GPU or for the CPU."""
