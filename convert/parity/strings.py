"""Over a thousand strings on which tokenizers come apart: real text of many scripts, and adversarial pieces.

Pre-tokenizers, normalizers, byte fallback and special-token handling each have corners that a page of English
never touches. The strings are built from ingredients written here, the same in every run. Left out: lone
surrogates, which are no text (they have no UTF-8 form and both sides refuse them).
"""

import functools
import itertools
import json
import unicodedata

# A short list for a quick look; all of it is part of `texts()`.
PROBE_TEXTS = (
    "Hello world",
    " leading and trailing ",
    "double  spaces,   triple    quadruple",
    "tabs\tand\nnewlines\n\n\nand\r\nreturns",
    "I've we'll you're he'd it's I'M YOU'RE",
    "numbers 1 22 333 4444 55555 3.14159 1,000,000 0x1F",
    "punctuation!!! ... ---- ?!?! (brackets) [square] {curly} <angle> \"quotes\" 'single'",
    "mixed-CASE CamelCase snake_case kebab-case http://example.com/a?b=c&d=e#f me@example.com",
    "accents: é è ê ë ñ ü ç ø å Æ Œ ß, combining: e\u0301 n\u0303",
    "Привет мир, καλημέρα κόσμε, שלום עולם, مرحبا بالعالم",
    "中文分词 日本語のテキスト ไทย",
    "한국어 텍스트 हिन्दी பகுதி বাংলা",
    "emoji 🚀 👩‍👩‍👧‍👦 🏳️‍🌈 😶‍🌫️ ✅ flags 🇫🇷🇯🇵",
    "symbols € £ ¥ © ® ™ ° ± × ÷ ≤ ≥ ≠ ∞ √ ∑ ∂ → ⇒ ½ ² ³",
    "zero\u200bwidth non\u00a0breaking thin\u2009space ideographic\u3000space",
    "User identity: film lover, parent; User interests: jazz, hiking, Thai food",
    "a" * 60 + " " + "ab" * 40,
    "don''t ```code``` ''''''```````\"\"\"\"......!!!!!!??????",
    "x",
    " ",
    "\n",
    "",
)

# One or two sentences a language, about the things that profiles are about.
SENTENCES = (
    "She reads two novels a week and listens to jazz on the train home.",
    "The old cinema on the corner shows silent films every second Sunday.",
    "We'd rather cook at home: lentils, rice, a little cumin, and nothing else.",
    "It wasn't the plot that I couldn't follow; it's who's who that I'd mixed up.",
    "Le café était fermé, alors nous avons dîné à l'hôtel près du château.",
    "Où sont passées les années où l'on écrivait encore des lettres à la main ?",
    "Die Straße führt über die Brücke; dahinter liegen Äcker, Öfen und müde Häuser.",
    "El niño soñó con un pingüino que tocaba la guitarra. ¿Quién lo creería? ¡Nadie!",
    "A maçã caiu do galho; não há razão para culpar o vento de São João.",
    "Perché mai la città è così lontana? Il caffè, però, è già pronto.",
    "De kleine bioscoop in 's-Hertogenbosch draait élke avond een film uit IJsland.",
    "Blåbärssoppa på fjället smakar bäst när snön yr och skidorna är vallade.",
    "Þorsteinn á tvær bækur um eldfjöll og eina um sauðfé.",
    "Näkymätön jänis hyppäsi yöllä järven yli.",
    "Zażółć gęślą jaźń, powiedział źle usposobiony wąż i zasnął.",
    "Příliš žluťoučký kůň šel večer domů řekou.",
    "Két erős fűszer és egy csésze tea kell a hosszú őszi estéhez.",
    "Șapte pisici țopăie în grădina bătrânei în zori.",
    "İstanbul'da ılık bir akşam, çay ve şeker; ığdır'dan gelen üzüm.",
    "Đêm qua tôi đọc sách đến khuya, trời mưa rả rích ngoài hiên.",
    "Mẹ tôi thích nghe nhạc Trịnh và uống cà phê sữa đá.",
    "Lielais ķiršu dārzs ziedēja, bet putni jau bija aizlidojuši.",
    "Katė ir šuo žiūri į ąžuolą už lango.",
    "Gwelais dŷ ar lan y môr, a'r gwynt yn canu drwy'r to.",
    "Bhí an tsaoirse níos gaire ná a shíl sé.",
    "Съешь ещё этих мягких булок, а потом сыграй на баяне.",
    "Її бабуся щодня пече хліб і ґречно вітає сусідів.",
    "Њена ћерка чита књиге о џезу и ђумбиру.",
    "Щурецът свири до късно, а жътвата още чака.",
    "Η γιαγιά έψησε ψωμί· ποιος θα το φάει; Όλοι, φυσικά!",
    "Ὁ βίος βραχύς, ἡ δὲ τέχνη μακρή.",
    "Ծերունին նստել էր ծառի տակ և նայում էր լեռներին։",
    "მოხუცი ბებია ყოველ დილით პურს აცხობს.",
    "הסבתא אופה לחם בכל בוקר, ואז יוצאת לשוק.",
    "שָׁלוֹם לְכֻלָּם, מָה נִשְׁמָע?",
    "قرأت جدتي الكتاب ثم نامت قرب النافذة، وكان المطر يهطل.",
    "السَّلامُ عَلَيْكُمْ، كَيْفَ الحالُ؟",
    "او هر شب زیر نور چراغ می‌خواند و چای می‌نوشد.",
    "وہ ہر صبح چائے پیتا ہے اور اخبار پڑھتا ہے۔",
    "दादी हर सुबह रोटी बनाती हैं और रेडियो सुनती हैं।",
    "ठाकुरजी की पूजा में श्री, ज्ञान और क्षमा के फूल चढ़े।",
    "আমার ঠাকুমা রোজ সকালে রুটি বানান এবং গান শোনেন।",
    "ਮੇਰੀ ਦਾਦੀ ਹਰ ਸਵੇਰ ਚਾਹ ਪੀਂਦੀ ਹੈ।",
    "મારી દાદી રોજ સવારે છાપું વાંચે છે.",
    "என் பாட்டி தினமும் காலையில் கதை சொல்வாள்.",
    "మా అమ్మమ్మ ప్రతి ఉదయం కాఫీ తాగుతుంది.",
    "ನನ್ನ ಅಜ್ಜಿ ಪ್ರತಿದಿನ ಹಾಡು ಕೇಳುತ್ತಾಳೆ.",
    "എന്റെ മുത്തശ്ശി എല്ലാ ദിവസവും ചായ കുടിക്കും.",
    "මගේ ආච්චි හැම උදේකම තේ බොනවා.",
    "คุณยายของฉันอบขนมทุกเช้าแล้วฟังวิทยุ",
    "ແມ່ຕູ້ຂອງຂ້ອຍດື່ມກາເຟທຸກເຊົ້າ",
    "ကျွန်တော့်အဘွား မနက်တိုင်း လက်ဖက်ရည်သောက်တယ်။",
    "ជីដូនរបស់ខ្ញុំផឹកតែរាល់ព្រឹក។",
    "རྨོ་བོས་ཞོགས་པ་རེ་བཞིན་ཇ་འཐུང་།",
    "奶奶每天早上烤面包，然后去菜市场买豆腐。",
    "老闆，請給我兩碗牛肉麵；一碗不要蔥，謝謝！",
    "祖母は毎朝パンを焼いて、ラジオを聴きます。「おはよう」と言った。",
    "コーヒーとﾄｰｽﾄを２つずつ、お願いします。",
    "할머니는 매일 아침 빵을 굽고 라디오를 들으십니다.",
    "ᠡᠮᠡᠭᠡ ᠡᠬᠡ ᠴᠠᠢ ᠤᠤᠭᠤᠨ᠎ᠠ",
    "አያቴ በየቀኑ ጠዋት ቡና ታፈላለች።",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎣᏍᏓ",
    "ᐃᓄᒃᑎᑐᑦ ᐅᖃᐅᓯᖅ",
    "ⵜⴰⵎⴰⵣⵉⵖⵜ ⴷ ⵜⵓⵜⵍⴰⵢⵜ",
    "ܫܠܡܐ ܠܟܘܢ",
    "Bibi yangu hupika chapati kila asubuhi, kisha husikiliza redio.",
    "Ìyá àgbà mi máa ń yan búrẹ́dì ní àárọ̀.",
    "Ua ʻike au i ke kāne e ʻai ana i ka iʻa.",
)

PROFILES = (
    "User identity: nurse, gardener; User interests: crime novels, baroque music, Italian cooking",
    "This user has rated: 'The Long Winter' (5 stars), 'Café Society' (2 stars), 'Up & Down' (4 stars).",
    "Summarise the reader in two phrases.\n\nHistory:\n- The Quiet House | Horror, Gothic\n- Sea of Tea | "
    "Travel\n\nProfile:",
    '{"identity": "student, cyclist", "interests": ["science fiction", "ramen", "maps"]}',
    "Item: Espresso machine, 15 bar, 1.2 l; Category: Kitchen > Coffee; Price: €129.90",
    "Explain in at most 25 words why user #4711 may like item #0815 (score 0.8731).",
    "Q: Which of [A] The Tram, [B] Die Straße, [C] 駅前 suits the user best?\nA:",
    "Title: “Nobody’s Fool” – a novel…\nAuthor: R. O’Hara\nTags: small-town, family_saga, 1990s",
)

CODE = (
    "def add(a, b):\n    return a + b\n\n\nclass Point:\n\tx: int = 0\n",
    "for i in range(10):\n        if i % 2 == 0:\n                print(f\"{i:>4}\", end='\\t')\n",
    '#include <stdio.h>\nint main(void) { printf("%5.2f\\n", 3.14); return 0; }\n',
    'fn main() {\n    let v: Vec<&\'static str> = vec!["a", "b"];\n    println!("{v:?}");\n}\n',
    "const f = async (x) => { await g(`${x}!`); return x ?? null; }; // ok?\n",
    "SELECT u.id, COUNT(*) AS n FROM ratings r JOIN users u ON u.id = r.user_id GROUP BY 1 HAVING n > 5;",
    "<div class=\"card\"><a href='#top'>&nbsp;Up&amp;down</a><br/></div>\n<!-- end -->",
    '#!/bin/sh\nset -eu\nfor f in *.txt; do echo "${f%.txt}" >> out.log 2>&1; done\n',
    "main = mapM_ print $ takeWhile (<= 100) [x ^ 2 | x <- [1 ..]]",
    "\\begin{equation}\\label{eq:1}\n  \\hat{y}_{ui} = \\sum_{k=1}^{K} p_{uk} q_{ik}\n\\end{equation}",
    '[tool.x]\nname = "y"\n# comment\nlist = [1, 2,\n  3]\n',
    "---\n- key: value\n  other: [a, b]\n  text: |\n    two\n    lines\n",
    "diff --git a/x b/x\n@@ -1,2 +1,2 @@\n-old line\n+new line\n",
    "| a | b |\n|---|:-:|\n| 1 | **2** |\n\n> quote\n\n```py\nx = 1\n```\n",
    '{"a": [1, 2.5e-3, null, true], "b": {"c": "\\u00e9\\n"}}',
    "^(?:[a-z0-9]+(?:\\.[a-z0-9]+)*)@example\\.(com|org)$",
    "public static <T extends Comparable<? super T>> T max(List<? extends T> xs) throws IOException;",
    "func (s *Server) Handle(ctx context.Context, r *Request) (resp *Response, err error) {\n\tdefer s.mu.Unlock()\n}",
)

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
