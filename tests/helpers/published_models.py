"""The models of the publication (arXiv 2412.19302): what is asked of them beyond the contract of every model."""

PUBLISHED = ("biasmf", "ncf", "lightgcn", "sgl", "simgcl")
