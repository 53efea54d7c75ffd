"""Triton kernels: every operation of the course for NVIDIA GPUs, and in Triton's interpreter without one.

One file a family; `launch` holds what they share. With `TRITON_INTERPRET=1` in the environment when Triton
is imported, the same kernels run on the CPU, one program after the other.
"""
