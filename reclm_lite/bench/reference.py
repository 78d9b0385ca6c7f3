"""LightGCN's training epoch beside a torch implementation that is given as a file."""
def time_epochs(inputs, path, epochs, n_threads, seed):
    return []
