"""A chat template is rendered the same way every day, or refused with a sentence."""

from datetime import datetime

import pytest
from tiny_llama import write_tiny_llama

from reclm_lite.errors import ModelError
from reclm_lite.profiles.chat import MAX_WRAP_CHARS, chat_wrap
from reclm_lite.runtime import load_model

MESSAGES = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def wrap_of(tmp_path, template):
    with load_model(write_tiny_llama(tmp_path / "chat.gguf", chat_template=template), vocab_only=True) as loaded:
        return chat_wrap(loaded)


def test_a_template_that_asks_for_the_date_is_always_told_the_same(tmp_path):
    wrap = wrap_of(tmp_path, "Today: {{ strftime_now('%d %b %Y %H:%M') }}\n" + MESSAGES)
    assert wrap.before == "Today: 26 Jul 2024 00:00\n[user]" and wrap.after == "[assistant]"
    assert str(datetime.now().year) not in wrap.before


def test_a_template_that_only_asks_whether_there_is_a_clock_renders_as_with_one(tmp_path):
    template = "{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% else %}{% set d = 'none' %}{% endif %}{{ d }}"
    assert wrap_of(tmp_path, template + MESSAGES).before == "2024[user]"


def test_the_name_follows_the_template_and_what_it_renders_to(tmp_path, monkeypatch):
    template = "{{ strftime_now('%Y') }}" + MESSAGES
    name = wrap_of(tmp_path, template).name
    assert name == wrap_of(tmp_path, template).name and name.startswith("chat:") and len(name) == 13
    assert wrap_of(tmp_path, template + "{# same text #}").name != name
    monkeypatch.setattr("reclm_lite.profiles.chat._TODAY", datetime(2031, 1, 1))
    assert wrap_of(tmp_path, template).name != name


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}" + MESSAGES,
        "{{ messages[7].content }}{{ messages.nothing() }}",
        "{{ raise_exception('only tools') }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ ''.__class__.__mro__ }}" + MESSAGES,
        "{{ '%d' | format('x') }}" + MESSAGES,
        "{{ [].pop() }}" + MESSAGES,
        "{{ '\\ud800' }}" + MESSAGES,
    ],
)
def test_whatever_goes_wrong_in_a_template_is_told_in_a_sentence(tmp_path, template):
    with pytest.raises(ModelError, match=r"the chat template of .* cannot be rendered \(.+\); use a GGUF"):
        wrap_of(tmp_path, template)


def test_a_template_that_says_too_much_is_refused(tmp_path):
    room = MAX_WRAP_CHARS - len("[user][assistant]")
    assert len(wrap_of(tmp_path, "{{ 'x' * %d }}" % room + MESSAGES).before) == room + len("[user]")
    with pytest.raises(ModelError, match="at most 16,000 characters around a message, found 16,001"):
        wrap_of(tmp_path, "{{ 'x' * %d }}" % (room + 1) + MESSAGES)
