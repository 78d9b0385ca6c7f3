"""A random Qwen 2 with a chat template in the ChatML form."""

import json
from pathlib import Path

from checkpoints import save_llama, train_qwen2

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_base(folder: Path) -> Path:
    """A random model with a chat template, and a tokenizer that begins no text with BOS."""
    save_llama(folder)
    train_qwen2(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHATML}))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder
