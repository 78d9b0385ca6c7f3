"""A chat template renders deterministically, or is refused with a clear error."""

from datetime import datetime

import pytest
from tiny_llama import write_tiny_llama

from reclm_lite import chat_template
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
    template = (
        "{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% else %}{% set d = 'none' %}{% "
        "endif %}{{ d }}"
    )
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
        "{% if %}" + MESSAGES,
    ],
)
def test_whatever_goes_wrong_in_a_template_is_told_in_a_sentence(tmp_path, template):
    with pytest.raises(ModelError, match=r"the chat template of .* cannot be rendered \(.+\); use a GGUF"):
        wrap_of(tmp_path, template)


def test_a_template_that_says_too_much_is_refused(tmp_path):
    room = MAX_WRAP_CHARS - len("[user][assistant]")
    assert len(wrap_of(tmp_path, f"{{{{ 'x' * {room} }}}}" + MESSAGES).before) == room + len("[user]")
    with pytest.raises(ModelError, match="at most 16,000 characters around a message, found 16,001"):
        wrap_of(tmp_path, f"{{{{ 'x' * {room + 1} }}}}" + MESSAGES)


HOSTILE = {
    "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "much text": "{{ 'x' * 10**10 }}",
    "text, doubled again and again": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x "
    "%}{% endfor %}",
    "a list, doubled": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "text, bit by bit": "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
    "a large number": "{{ (10 ** (10 ** 9)) % 7 }}",
    "a wide format": "{{ '%1000000000d' | format(1) }}{{ '{:9000000000}'.format(1) }}",
    "a filter that fills": "{{ 'x' | center(10**10) }}{{ [1] | batch(10**10, 'x') | list }}",
    "indented JSON": "{{ {'a': 1} | tojson(indent=10**10) }}",
    "calls without end": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "the way out of the sandbox": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "the way out by a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ messages.append(1) }}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_template_that_takes_too_much_ends_with_a_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("reclm_lite.chat_template.WALL_SECONDS", 120.0)  # for machines with much else to do
    with pytest.raises(ModelError, match=r"the chat template of .* cannot be rendered \(.+\); use a GGUF"):
        wrap_of(tmp_path, HOSTILE[kind] + MESSAGES)


def test_a_renderer_that_waits_is_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr("reclm_lite.chat_template.WALL_SECONDS", 0.01)
    with pytest.raises(chat_template.TemplateFailed, match="more than 0 seconds"):
        chat_template.render_one(MESSAGES, {"messages": []})


def test_a_template_is_rendered_as_llama_cpp_python_renders_it():
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = (
        "{{ bos_token }}{% for m in messages %}\n  {% if loop.first and tools is not none %}no{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% if m.role == 'x' %}{% break %}{% endif %}\n{%- endfor %}"
        "{% if add_generation_prompt %}[{{ eos_token }}{{ functions }}{{ nothing }}]{% endif %}"
    )
    messages = [
        {"role": "user", "content": "<é&\"'> {{ x }}"},
        {"role": "x", "content": " a\n"},
        {"role": "y", "content": ""},
    ]
    names = {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    names |= dict.fromkeys(("functions", "function_call", "tools", "tool_choice"))
    assert (
        chat_template.render_one(template, names)
        == Jinja2ChatFormatter(template, "</s>", "<s>")(messages=messages).prompt
    )
