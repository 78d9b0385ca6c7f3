"""The compiled kernels: C11 with OpenMP; the instruction set is chosen when the library is loaded.

    csr = make_csr(indptr, indices, data, shape)     validated once
    out = spmm(csr, dense)                           float32 (n_rows, dim)
    ids, scores = topk(users, items, k=20, ...)      int32, float32 (n_users, k)

Each binding validates shapes, dtypes and ranges, owns the memory and raises; the C code trusts it. Results have the
same bits with any number of threads, and ties go to the lower id.
"""

from reclm_lite.kernels._library import (
    CSR,
    STATUS_ERRORS,
    KernelError,
    default_threads,
    empty,
    find_library,
    isa,
    isas,
    make_csr,
    raise_for_status,
    use_isa,
)
from reclm_lite.kernels.propagate import from_bf16, spmm, to_bf16
from reclm_lite.kernels.topk import knn, select, topk

__all__ = [
    "CSR",
    "STATUS_ERRORS",
    "KernelError",
    "default_threads",
    "empty",
    "find_library",
    "from_bf16",
    "isa",
    "isas",
    "knn",
    "make_csr",
    "raise_for_status",
    "select",
    "spmm",
    "to_bf16",
    "topk",
    "use_isa",
]
