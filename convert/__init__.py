"""Checkpoints to GGUF: reading, renaming, vocabularies, quantization, and the proof that nothing was lost."""
