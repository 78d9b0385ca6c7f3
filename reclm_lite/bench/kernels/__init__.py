"""`reclm bench kernels`: each kernel beside scipy, torch, numba, implicit and numpy."""
