"""Random Llama-architecture models in GGUF form, made on the spot: byte-level vocabulary, no training."""

from pathlib import Path

import numpy as np

BOS, EOS = 0, 1


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, by byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def write_tiny_llama(
    path: Path,
    *,
    n_vocab: int = 300,
    n_embd: int = 64,
    n_ff: int = 128,
    n_layer: int = 2,
    n_head: int = 4,
    n_ctx: int = 512,
    seed: int = 0,
    add_bos: bool = True,
    chat_template: str | None = None,
    quantization: str = "F32",
    scale: float = 1.5,
) -> Path:
    """Write a random model: tokens <s>, </s>, the 256 bytes, pairs of letters merged. Returns `path`."""
    import gguf

    rng = np.random.default_rng(seed)
    alphabet = byte_alphabet()
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    n_pairs = max(0, n_vocab - 258)
    pairs = [(a, b) for a in ["\u0120", *letters] for b in letters][:n_pairs]
    tokens = ["<s>", "</s>", *alphabet, *(a + b for a, b in pairs)]
    tokens += [f"<unused{i}>" for i in range(n_vocab - len(tokens))]
    types = [3, 3] + [1] * (len(alphabet) + len(pairs)) + [5] * (n_vocab - 258 - len(pairs))

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{a} {b}" for a, b in pairs] or ["t h"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(add_bos)
    if chat_template:
        writer.add_chat_template(chat_template)

    def tensor(name: str, *shape: int, std: float | None = None) -> None:
        if std is None:
            data = np.ones(shape, np.float32)
        else:
            data = rng.normal(0.0, std, shape).astype(np.float32)
        if quantization != "F32" and data.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantization]
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)

    width = scale / np.sqrt(n_embd)
    tensor("token_embd.weight", len(tokens), n_embd, std=1.0)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        tensor(f"{block}.attn_norm.weight", n_embd)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{block}.{part}.weight", n_embd, n_embd, std=width)
        tensor(f"{block}.ffn_norm.weight", n_embd)
        tensor(f"{block}.ffn_gate.weight", n_ff, n_embd, std=width)
        tensor(f"{block}.ffn_up.weight", n_ff, n_embd, std=width)
        tensor(f"{block}.ffn_down.weight", n_embd, n_ff, std=scale / np.sqrt(n_ff))
    tensor("output_norm.weight", n_embd)
    tensor("output.weight", len(tokens), n_embd, std=width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
