"""`reclm bench`: every figure beside its peers, measured in turns in the same run.

    harness, machine, comparison   child processes, timing and peak memory; facts of the machine; tables and JSON
    random_graphs, random_llama    inputs made from a seed
    kernels, fitting, exporting, profile_engine, tuning, quant   a folder for each command

This file is light, so that the command line can read the choices below without loading a benchmark.
"""

KERNEL_PARTS = ("spmm", "topk", "knn", "training")
PROFILE_QUANTS = ("q4_k_m", "q8_0")
