"""Over a thousand strings on which tokenizers come apart: real text of many scripts, and adversarial pieces.

Pre-tokenizers, normalizers, byte fallback and special-token handling each have corners that a page of English
never touches. The strings are built from ingredients written here and in sentences.py, the same in every run. Left
out: lone surrogates, which are no text (they have no UTF-8 form and both sides refuse them).
"""

import functools
import itertools
import json
import unicodedata

from reclm_lite.convert.parity.sentences import CODE, PROBE_TEXTS, PROFILES, SENTENCES

# What other models' templates are made of; to this model they may be plain text, or its own control tokens.
SPECIAL_LOOKALIKES = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|begin|>",
    "<|pad|>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<unused3>",
    "<mask>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[PAD]",
    "[UNK]",
    "[PAD7]",
    "<0x0A>",
    "<0xE2>",
    "<0x00>",
    "▁",
    "▁▁the",
    "##ing",
    "Ġthe",
    "Ċ",
    "<tool_call>",
    "</think>",
    "<|fim_prefix|>",
    "<image>",
    "<table>",
    "<h1>",
    "[BOS]",
    "<2mass>",
)

EMOJI = (
    "😀",
    "😂😂😂",
    "👍🏽",
    "👩🏾‍🚒",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🏴‍☠️",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "❤️",
    "❤",
    "☎️",
    "☎︎",
    "1️⃣",
    "#️⃣",
    "🇫🇷",
    "🇫🇷🇯🇵🇧🇷",
    "🇫",
    "🤷‍♂️",
    "🧑‍🦽‍➡️",
    "🫠",
    "🪿",
    "♟️",
    "✅",
    "🈶",
    "Ⓜ️",
    "🀄",
    "🃏",
)

# Single characters that some layer treats as space, control, nothing at all, or an error.
ODD_CHARACTERS = (
    *(chr(c) for c in (*range(0x20), 0x7F, *range(0x80, 0xA1), 0xAD)),
    "\u034f",
    "\u061c",
    "\u0600",
    "\u06dd",
    "\u070f",
    "\u115f",
    "\u1160",
    "\u1680",
    "\u17b4",
    "\u180e",
    "\u200b",
    "\u200c",
    "\u200d",
    "\u200e",
    "\u200f",
    "\u2002",
    "\u2003",
    "\u2007",
    "\u2009",
    "\u200a",
    "\u2010",
    "\u2011",
    "\u2013",
    "\u2014",
    "\u2018",
    "\u2019",
    "\u201c",
    "\u201d",
    "\u2026",
    "\u2028",
    "\u2029",
    "\u202a",
    "\u202e",
    "\u202f",
    "\u205f",
    "\u2060",
    "\u2064",
    "\u2066",
    "\u2069",
    "\u206f",
    "\u20dd",
    "\u2800",
    "\u3000",
    "\u3164",
    "\u3099",
    "\ufe00",
    "\ufe0f",
    "\ufeff",
    "\ufff9",
    "\ufffb",
    "\ufffc",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\ue000",
    "\uf8ff",
    "\ufdd0",
    "\U00010000",
    "\U0001d7d8",
    "\U0001f1e6",
    "\U000e0001",
    "\U000e0020",
    "\U000e0100",
    "\U000f0000",
    "\U0010fffd",
    "\U0010ffff",
    "\u0378",
    "\u0530",
)

# Letters whose case, composition or compatibility form is another: what lower-casing and normalizers stumble on.
FOLDING = (
    "İ",
    "ı",
    "ß",
    "ẞ",
    "ŉ",
    "ǰ",
    "Ǆ",
    "ǅ",
    "ſ",
    "ς",
    "Σ",
    "ΑΣ",
    "ﬁ",
    "ﬀ",
    "ﬃ",
    "Å",
    "\u212b",
    "K",
    "Ω",
    "½",
    "²",
    "₃",
    "Ⅳ",
    "ⅷ",
    "①",
    "㍿",
    "㎏",
    "ﷺ",
    "ﺎ",
    "ｱ",
    "Ａ",
    "１",
    "𝐀",
    "𝓌",
    "ª",
    "º",
    "µ",
    "μ",
    "ŀ",
    "ĸ",
    "Ỽ",
    "Ꭰ",
    "ꭰ",
    "ა",
    "Ა",
    "ᲀ",
    "가",
    "\u1100\u1161",
    "각",
    "e\u0301",
    "é",
    "q\u0307\u0323",
    "q\u0323\u0307",
    "ạ\u0308\u0301",
    "Z" + "\u0351\u0326\u0300" * 5,
    "\u0301a",
    "が",
    "か\u3099",
    "क\u093c",
    "क़",
)

_FRAMES = ("{}", " {}", "{} ", "a{}b", "a {} b", "{0}{0}", "{0}\n{0}")
_SHORT_FRAMES = ("{}", "a{}b", " {0}{0} ")


def _whitespace() -> list[str]:
    """Runs of spaces, tabs and newlines of every length up to 33, alone and between words, and their mixtures."""
    lengths = (*range(1, 18), 23, 31, 32, 33)
    runs = [c * n for c in (" ", "\t", "\n") for n in lengths] + ["\r\n" * n for n in range(1, 6)]
    framed = [frame.format(run) for run in runs for frame in ("{}", "x{}y", "{}z")]
    mixed = ["".join(m) for n in (2, 3) for m in itertools.product(" \n\t\r", repeat=n)]
    return framed + [f"x{run}y" for run in mixed] + ["\u3000" * n + "字" for n in (1, 2, 5)] + ["\u00a0 " * 3 + "w"]


def _numbers() -> list[str]:
    digits = "1234567890" * 4
    plain = [digits[:n] for n in range(1, 28)] + ["0" * n for n in range(1, 13)]
    written = [
        "1,234,567.89",
        "1.234.567,89",
        "-0.5e-12",
        "+49 (0)30 1234-5678",
        "0xDEADBEEF",
        "1_000_000",
        "50%",
        "№7",
    ]
    written += [
        "3²+4²=5²",
        "12:34:56",
        "2024-02-30T25:61Z",
        "192.168.0.255",
        "v1.10.0-rc.2",
        "1/3",
        "$9.99",
        "9th",
        "R2D2",
    ]
    other = ["".join(chr(ord(zero) + int(d)) for d in "1729") for zero in "٠۰०০๐０𝟎"] + [
        "四十二",
        "Ⅻ",
        "½¾⅞",
        "₁₂₃",
        "⑴⑵",
    ]
    return plain + [f"x{n}y" for n in plain[:8]] + [f" {n}" for n in plain[:8]] + written + other


def _words() -> list[str]:
    long = ["a" * n for n in (30, 99, 100, 101, 257)] + [
        "pneumono" * 12,
        "Donaudampfschifffahrt" * 3,
        "é" * 70,
        "中" * 130,
    ]
    cases = [
        "iPhone",
        "McDonald's",
        "USA's",
        "eBay-like",
        "XMLHttpRequest",
        "snake_case_name",
        "ALLCAPS",
        "aAaAaA",
        "x86_64",
    ]
    suffixes = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Ve", "’s", "’ll", "'x", "''s", "' s"]
    return long + cases + [f"{w}{s}" for w in ("we", "WE", "4", "é", "") for s in suffixes]


def _punctuation() -> list[str]:
    runs = [c * n for c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" for n in (1, 2, 7)]
    joined = [
        "a.b",
        "a,b",
        "a - b",
        "(a)",
        "[a]",
        "{a}",
        "<a>",
        "a/b",
        "a\\b",
        "«a»",
        "„a“",
        "¿a?",
        "a…b",
        "a—b",
        "。、！？",
        "‽⁂",
    ]
    return runs + joined


def _urls() -> list[str]:
    return [
        "https://example.org/a/b.html?q=caf%C3%A9&lang=fr#top",
        "http://user:pw@host.example:8080/~me/index.php?x[]=1&x[]=2",
        "ftp://files.example/pub/IMG_0001.JPG",
        "www.example.com/ünïcode/路径",
        "first.last+tag@sub.example.co.uk",
        "C:\\Users\\Åse\\Documents\\a b.txt",
        "/usr/local/lib/python3.11/site-packages/__init__.py",
        "data:text/plain;base64,SGVsbG8sIHdvcmxkIQ==",
        "magnet:?xt=urn:btih:0123456789abcdef0123456789ABCDEF01234567",
        "@someone #hashtag #日本 /r/books u/reader_42",
    ]


def _lookalikes() -> list[str]:
    whole = [frame.format(t) for t in SPECIAL_LOOKALIKES for frame in ("{}", " {}", "a{}b", "{0}{0}", "{} x")]
    partial = [t[:n] for t in SPECIAL_LOOKALIKES for n in (len(t) - 1, len(t) // 2) if n > 1]
    spaced = [" ".join(t) for t in SPECIAL_LOOKALIKES[:12]] + [t.upper() for t in SPECIAL_LOOKALIKES[:12]]
    talk = "".join(f"<|im_start|>{role}\nhi<|im_end|>\n" for role in ("system", "user", "assistant"))
    return [*whole, *partial, *spaced, talk, "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nhi [/INST] ok </s>"]


@functools.cache
def texts() -> tuple[str, ...]:
    """The distinct strings, at least a thousand, in an order that never changes. All of them encode to UTF-8."""
    forms = [unicodedata.normalize(form, s) for form in ("NFC", "NFD", "NFKC") for s in (*SENTENCES, *FOLDING)]
    cased = [s.upper() for s in SENTENCES] + [s.lower() for s in SENTENCES] + [s.upper() for s in FOLDING]
    pairs = [a + b for a, b in zip(SENTENCES, SENTENCES[7:], strict=False)]  # scripts meet without a space
    records = [json.dumps({"text": s, "n": i}, ensure_ascii=i % 2 == 0) for i, s in enumerate(SENTENCES)]
    groups = (
        PROBE_TEXTS,
        SENTENCES,
        PROFILES,
        CODE,
        [frame.format(c) for c in (*EMOJI, *FOLDING) for frame in _FRAMES],
        [frame.format(c) for c in ODD_CHARACTERS for frame in _SHORT_FRAMES],
        _whitespace(),
        _numbers(),
        _words(),
        _punctuation(),
        _urls(),
        _lookalikes(),
        forms,
        cased,
        pairs,
        records,
        ["\n".join(SENTENCES[i : i + 8]) for i in range(0, len(SENTENCES), 8)],
    )
    return tuple(dict.fromkeys(itertools.chain.from_iterable(groups)))
