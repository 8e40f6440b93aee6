"""Chat templates in their sandbox: what they may do, what they may not, and that they come to an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcd.errors import ConfigError
from emcd.inference import chat_template
from emcd.inference.chat_template import (
    ChatTemplate,
    TemplateRefused,
    flatten_message,
    load_template,
    make_chat_prompt,
)
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.training.bpe import CHAT_TEMPLATE
from tests.support.decoder_model import ToyDecoder, toy_decoder

__all__ = ["toy_decoder"]

TALK = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi <there>"}]


@pytest.mark.parametrize(
    "source", ["{% for", "{{ 1 +", "{% endif %}", "x" * (chat_template.MAX_TEMPLATE_BYTES + 1)]
)
def test_template_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="EMC-1653"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ nothing.at.all }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({'role': 'x'}) %}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [1] * 10000000 }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_template_that_does_what_it_must_not_is_refused(source: str) -> None:
    with pytest.raises(TemplateRefused, match="EMC-1654"):
        ChatTemplate(source).render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(64) }}",
    ],
)
def test_template_that_does_not_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_CPU_S", 0.05)
    with pytest.raises(TemplateRefused, match="took more than"):
        ChatTemplate(source).render(TALK)


def test_template_with_too_much_output_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_OUTPUT_CHARS", 100)
    with pytest.raises(TemplateRefused, match="more than 100 characters"):
        ChatTemplate("{% for a in range(1000) %}{{ a }}{% endfor %}").render(TALK)


def test_render_chatml_gives_every_turn_and_the_begin_of_the_answer() -> None:
    template = ChatTemplate(CHAT_TEMPLATE)
    text = template.render(TALK)
    turns = "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhi <there><|im_end|>\n"
    assert text == turns + "<|im_start|>assistant\n"
    assert template.render(TALK, add_generation_prompt=False) == turns


def test_render_has_what_templates_of_others_use() -> None:
    source = (
        "{{ bos_token }}{%- for m in messages %}\n"
        "  {%- if m.role == 'system' %}{% continue %}{% endif %}"
        "[{{ m['content'] | trim | tojson }}]{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if tools is not none or strftime_now is defined %}wrong{% endif %}"
    )
    assert ChatTemplate(source, bos="<s>", eos="</s>").render(TALK) == '<s>["hi <there>"]</s>'


def test_render_leaves_the_messages_as_they_are() -> None:
    before = [dict(message) for message in TALK]
    ChatTemplate(CHAT_TEMPLATE).render(TALK)
    assert before == TALK


def test_flatten_message_joins_parts_and_knows_developers() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert flatten_message({"role": "developer", "content": parts}) == {"role": "system", "content": "a\nb"}
    assert flatten_message({"role": "user", "content": "x", "name": "bo"}) == {
        "role": "user",
        "content": "x",
        "name": "bo",
    }


def test_make_chat_prompt_begins_with_the_models_first_token_once(toy_decoder: ToyDecoder) -> None:
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    template = ChatTemplate(CHAT_TEMPLATE)
    plain = make_chat_prompt(template, tokenizer, TALK, None)
    (start,) = tokenizer.encode("<|im_start|>", specials=False)
    assert plain[0] == start
    assert make_chat_prompt(template, tokenizer, TALK, start) == plain
    assert make_chat_prompt(template, tokenizer, TALK, 7) == [7, *plain]


def test_load_template_gives_it_the_names_of_first_and_last_token(
    tmp_path: Path, toy_decoder: ToyDecoder
) -> None:
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    start, end = (tokenizer.encode(name, specials=False)[0] for name in ("<|im_start|>", "<|im_end|>"))
    path = tmp_path / "chat_template.jinja"
    path.write_text("{{ bos_token }}|{{ eos_token }}")
    opened = load_template(path, tokenizer, bos_token=start, stop_tokens=(end,))
    assert opened.render(TALK) == "<|im_start|>|<|im_end|>"
    assert load_template(path, tokenizer, bos_token=None, stop_tokens=()).render(TALK) == "|"


def test_load_template_that_is_no_text_is_refused(tmp_path: Path, toy_decoder: ToyDecoder) -> None:
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    for name, content in (("missing", None), ("binary", b"\xff\xfe")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="EMC-1653"):
            load_template(tmp_path / name, tokenizer, bos_token=None, stop_tokens=())
