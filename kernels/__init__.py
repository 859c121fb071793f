"""FP32 kernels in numba: no MPI, no I/O. Each has its NumPy twin in `reference`."""
