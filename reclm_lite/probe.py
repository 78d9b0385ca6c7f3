"""stub"""
ENCODERS = frozenset(
    ("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert", "t5encoder")
)
def encodes(s):
    return s.architecture in ENCODERS or s.metadata.get(f"{s.architecture}.attention.causal") is False
def pooling_of(s):
    v = s.metadata.get(f"{s.architecture}.pooling_type")
    return v if isinstance(v, int) and 0 <= v < 2**31 else None
