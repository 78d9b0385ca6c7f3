"""`reclm bench quant`: how small a profile model may be before recommendations suffer.

`quant_bench` runs everything in this order:

    variants              quantized files, made or found, each checked against the unquantized one
    file_jobs             per file, in a child process: speed and encoder vectors
    token_distributions   per file, in a child process: perplexity, KL divergence, top-1 agreement
    written_profiles      the profiles that each file writes for the same users
    recommendations       Recall and NDCG of a backbone fitted with each file's profiles
    encoder_variants      the same question for the text encoder
    quant_summary         a row per file with intervals (`paired_intervals`), and the file to ship
    text_and_csv, html_page   the results on the terminal, as quant.csv and as quant.html

`resumable` keeps every figure on disk, so that a stopped run continues.
"""
