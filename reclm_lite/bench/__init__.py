"""`reclm bench`: benchmarks that measure this project and its peers in the same run, taking turns.

    harness, machine, comparison   child processes, timing and peak memory; facts of the machine; tables and JSON
    random_graphs, random_llama    inputs generated from a seed
    kernels, fitting, exporting, profile_engine, tuning, quant   a folder for each command

This file imports little, so that the command line can read the choices below without loading a benchmark.
"""

KERNEL_PARTS = ("spmm", "topk", "knn", "training")
PROFILE_QUANTS = ("q4_k_m", "q8_0")
