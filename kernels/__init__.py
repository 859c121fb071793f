"""FP32 kernels in numba, imported as tpimpi.kernels: no MPI, no I/O; NumPy twins in `reference`."""
