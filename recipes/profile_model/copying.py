"""A start from which copying is learned in minutes: the first two layers begin as an induction circuit.

Small transformers find the circuit "attend to what followed the last occurrence of this token, and say it" by
themselves, but only after tens of millions of tokens (https://arxiv.org/abs/2209.11895). Here it is written into the
random initial weights, in two heads of each of the first two layers; everything is trained afterwards:

- layer 0, heads 0 and 1, attend one position back: all embeddings share a constant component, from which query and
  key become fixed vectors whose rotary phases agree at distance one; they write a sketch of the token they see into
  a random subspace of the residual stream;
- layer 1, heads 0 and 1, compare a sketch of the present token with the sketches written by layer 0, in the slowly
  turning rotary dimensions, and add the embedding of the token they find to the stream.

Layout of transformers' Llama: rotary pairs are (i, i + head_dim / 2) within a head.
"""

import torch
from transformers import LlamaForCausalLM

N_COPY_HEADS = 2
_N_FAST = 8
_FIRST_SLOW = 12


@torch.no_grad()
def write_copying(model: LlamaForCausalLM, seed: int) -> None:
    """Overwrites embeddings and four heads of a freshly initialized model in place."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    half = size // 2
    embedding = model.model.embed_tokens.weight
    embedding.copy_(torch.randn(embedding.shape, generator=generator) * 0.05)
    embedding[:, -1] = 0.4
    angles = model.config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)

    def orthonormal(n: int) -> torch.Tensor:
        """float32 (n, width): orthonormal rows that leave the constant component alone."""
        rows = torch.linalg.qr(torch.randn(width - 1, n, generator=generator))[0].T
        return torch.cat([rows, torch.zeros(n, 1)], dim=1)

    back, find = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    spread = orthonormal(N_COPY_HEADS * size)
    slow = torch.arange(_FIRST_SLOW * half // 32, half)
    slow = torch.cat([slow, slow + half])
    fast = torch.arange(min(_N_FAST, half))
    for head in range(N_COPY_HEADS):
        rows = slice(head * size, (head + 1) * size)
        sketch, place = orthonormal(size), orthonormal(size)
        query, key = torch.zeros(size), torch.zeros(size)
        key[fast] = 1.1
        query[fast], query[fast + half] = 1.1 * torch.cos(angles[fast]), -1.1 * torch.sin(angles[fast])
        back.q_proj.weight[rows] = 0.0
        back.k_proj.weight[rows] = 0.0
        back.q_proj.weight[rows, -1] = query
        back.k_proj.weight[rows, -1] = key
        back.v_proj.weight[rows] = sketch
        back.o_proj.weight[:, rows] = 0.15 * place.T
        find.q_proj.weight[rows] = 0.0
        find.k_proj.weight[rows] = 0.0
        find.q_proj.weight[rows][slow] = 2.4 * sketch[slow]
        find.k_proj.weight[rows][slow] = 2.4 * place[slow]
        find.v_proj.weight[rows] = spread[rows]
        find.o_proj.weight[:, rows] = 1.0 * spread[rows].T
