"""Tiny random checkpoints with tokenizers trained on the spot, for the tests of convert/."""

import json
from pathlib import Path

CORPUS = [
    "User identity: film lover, parent, cyclist; User interests: jazz, slow cinema, Thai food",
    "The council approves a new tram line after ten years of debate.",
    "I've seen that you're right; he'd say it's 1,024 or 3.14159, won't he?",
    "Привет мир, καλημέρα κόσμε, 中文分词 日本語のテキスト 한국어",
    "def add(a, b):\n    return a + b\n\n\n\t# tabs\tand  spaces",
    "emoji 🚀 ✅ and accents: é è ñ ü ß",
] * 4

# Beyond the probe texts of parity.py: pieces that look like special tokens, and odd white space.
ADVERSARIAL_TEXTS = [
    "<|end|>",
    "a<|end|>b <|begin|> c",
    "  \n\n  \t x  \r\n ",
    "don't DON'T 'tis y'all'd've",
    "１２３ ₁₂₃ Ⅳ 四",
    "e\u0301 \u00e9 \u212b ﬁ",
    "\u2028line\u2029paragraph\u0085next",
    "\ufeffbom \u200d joiner",
    "…—–‘’“”«»",
    "🏴\U000e0067\U000e0062 family 👨‍👩‍👧",
]


# Pre-tokenizers of byte-level BPE by llama.cpp's name; the pattern is Qwen 2's.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(directory: Path, n_vocab: int = 400, pre: str = "gpt-2") -> None:
    """A byte-level BPE of GPT-2's or Qwen 2's structure, with BOS and EOS, saved as transformers saves it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    if pre == "qwen2":
        special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]  # transformers adds the first if it is not there
        split = pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if pre != "qwen2":  # which begins no text
        named = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", 0)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(directory)


def train_qwen2(directory: Path) -> None:
    train_bpe(directory, pre="qwen2")


def _train_sentencepiece(directory: Path, structure: str) -> None:
    """tokenizer.model beside tokenizer.json; added tokens are listed as transformers 4 did, which the oracle reads."""
    import tokenizers_made

    tokenizers_made.save_sentencepiece(directory, getattr(tokenizers_made, structure))
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def train_llama2(directory: Path) -> None:
    """SentencePiece as in Llama 2 and Mistral 0.1: a space before every text."""
    _train_sentencepiece(directory, "LEGACY")


def train_gemma(directory: Path) -> None:
    """SentencePiece as in Gemma: no space before a text."""
    _train_sentencepiece(directory, "GEMMA")


def train_wordpiece(directory: Path, n_vocab: int = 300) -> None:
    """An uncased WordPiece of BERT's structure, saved as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=n_vocab, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    ).save_pretrained(directory)


# Two layers of 64, four heads, weights as large as trained ones, so that errors show.
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
# What makes a family's tiny model one of its kind: windows much shorter than the texts, layers in every role.
_TINY_OF = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {"bos_token_id": None, "pad_token_id": 0},
    "Qwen3": {"bos_token_id": None, "pad_token_id": 0, "head_dim": 32},
    "Gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 3},
    "Gemma3Text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7},
}


def save_decoder(
    directory: Path, family: str, *, train=train_bpe, dtype: str = "float32", change=None, **overrides: object
) -> Path:
    """A random tiny decoder of `family`, a key of `_TINY_OF`, with the tokenizer that `train` puts beside it.

    Norms and biases are random too: ones and zeros would hide a swapped or a forgotten one. `change` is called with
    the model before it is saved as `dtype`.
    """
    import torch
    import transformers

    torch.manual_seed(7)
    train(directory)
    made = {"vocab_size": 400}
    if (directory / "tokenizer.model").is_file():
        n_vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
        made = {"vocab_size": n_vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**_TINY | _TINY_OF[family] | made | overrides)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith(".bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    if change is not None:
        change(model)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def save_llama(directory: Path, *, tied: bool = True, n_kv_heads: int = 2, **overrides: object) -> Path:
    """A random two-layer Llama, 64 wide, four heads."""
    return save_decoder(directory, "Llama", tie_word_embeddings=tied, num_key_value_heads=n_kv_heads, **overrides)


def shard(directory: Path, n_shards: int = 2) -> Path:
    """Spreads a checkpoint's tensors over `n_shards` files with an index, as save_pretrained does for large models."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for i in range(n_shards):
        part = sorted(tensors)[i::n_shards]
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def save_bert(directory: Path) -> Path:
    """A random two-layer BERT, 64 wide, four heads."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    train_wordpiece(directory)
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = BertModel(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    # The files that sentence-transformers writes beside a model.
    (directory / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Normalize", "models.Normalize")]
    (directory / "modules.json").write_text(
        json.dumps([{"idx": i, "path": path, "type": kind} for i, (path, kind) in enumerate(modules)])
    )
    return directory
