"""`reclm bench export`: merging an adapter and writing GGUF, beside peft and llama.cpp's converter."""
