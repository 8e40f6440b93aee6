"""The parts of the training: text, tokenizer, optimiser, the run on a toy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emcd.errors import ConfigError
from emcd.inference.decoder_graph import DecoderShape
from emcd.inference.training import corpus
from emcd.inference.training.bpe import (
    CHAT_TEMPLATE,
    END_OF_TEXT_ID,
    IM_END_ID,
    IM_START_ID,
    SPECIALS,
    train_bpe,
)
from emcd.inference.training.corpus import Corpus, make_talk, read_corpus
from emcd.inference.training.optimiser import AdamW, cosine_rate, make_views
from emcd.inference.training.trainer import (
    Plan,
    Progress,
    Stage,
    compute_held_out,
    compute_unigram,
    train,
)

SHAPE = DecoderShape(layers=1, hidden=16, heads=2, kv_heads=1, ffn=24, vocab=12, context=32)
PLAN = Plan((Stage(30, 4, 16), Stage(5, 2, 32)), peak_rate=1e-2, seed=1)
CYCLE = np.tile(np.arange(12), 60)


@pytest.fixture(scope="module")
def text() -> Corpus:
    return read_corpus()


def test_read_corpus_is_the_same_twice_and_clean(text: Corpus) -> None:
    assert read_corpus() == text
    assert len(text.held_out) > 100
    for one in (*text.learned, *text.held_out):
        assert one.isascii()
        assert one.count("<|im_start|>") == one.count("<|im_end|>")


def test_read_corpus_holds_out_what_is_not_learned_in_any_form(text: Corpus) -> None:
    learned = {one.split("\n\n", 1)[-1] for one in text.learned if not one.startswith("<|")}
    held_out = {one.split("\n\n", 1)[-1] for one in text.held_out if not one.startswith("<|")}
    assert held_out
    assert not learned & held_out
    assert not set(text.learned) & set(text.held_out)


def test_read_corpus_without_sources_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(corpus, "_topic_texts", lambda: iter(()))
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        read_corpus()
    assert caught.value.code == "EMC-1640"


def test_make_talk_is_what_the_template_renders() -> None:
    import jinja2

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template = jinja2.Template(CHAT_TEMPLATE)
    assert template.render(messages=messages) == make_talk("a", "b") + "\n"
    asked = template.render(messages=messages[:1], add_generation_prompt=True)
    assert make_talk("a", "b").startswith(asked)


def test_train_bpe_has_specials_first_and_every_byte() -> None:
    tokenizer = train_bpe(["the quick brown fox " * 50], 280)
    assert [tokenizer.id_to_token(token) for token in range(3)] == list(SPECIALS)
    assert (END_OF_TEXT_ID, IM_START_ID, IM_END_ID) == (0, 1, 2)
    for strange in ("\0\t\r\n", "héllo \U0001f98a", "  x  ", "\x7f"):
        assert tokenizer.decode(tokenizer.encode(strange).ids) == strange
    assert tokenizer.encode(make_talk("a")).ids[0] == IM_START_ID
    assert tokenizer.to_str() == train_bpe(["the quick brown fox " * 50], 280).to_str()


def test_adamw_first_step_is_the_rate_against_the_slope() -> None:
    """With corrected means the first step is rate * sign(gradient), whatever the gradient's size."""
    weights, decayed = np.array([1.0, -2.0, 3.0], np.float32), np.array([0, 0, 1], np.float32)
    AdamW(weights, decayed, decay=0.5, clip_norm=1e9).step(np.array([1e-3, -5.0, 2.0], np.float32), 0.1)
    np.testing.assert_allclose(weights, [0.9, -1.9, 3 - 0.1 - 0.1 * 0.5 * 3], rtol=1e-4)


def test_adamw_finds_the_minimum_of_a_bowl_and_clips() -> None:
    weights = np.array([5.0, -3.0], np.float32)
    optimiser = AdamW(weights, np.zeros(2, np.float32))
    for step in range(400):
        norm = optimiser.step(2 * (weights - np.float32(1)), cosine_rate(step, 400, 0.2))
        if step == 0:
            assert norm == pytest.approx(np.hypot(8, -8))
    np.testing.assert_allclose(weights, 1, atol=0.02)


def test_cosine_rate_rises_then_falls_to_its_floor() -> None:
    rates = [cosine_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_make_views_share_their_memory() -> None:
    flat, views = make_views({"a": (2, 3), "b": (4,)})
    views["b"][...] = 7
    views["a"][1, 2] = 5
    assert flat.tolist() == [0, 0, 0, 0, 0, 5, 7, 7, 7, 7]


def test_train_learns_a_cycle_and_reports_its_end() -> None:
    seen: list[Progress] = []
    tensors = train(CYCLE, SHAPE, PLAN, seen.append)
    held_out = compute_held_out(tensors, SHAPE, CYCLE[:200], 16)
    assert compute_unigram(CYCLE, CYCLE, 12) == pytest.approx(np.log(12), rel=1e-3)
    assert held_out < 1.0
    assert (seen[-1].step, seen[-1].steps) == (35, 35)


def test_train_is_the_same_twice_and_another_with_another_seed() -> None:
    first, second = (train(CYCLE, SHAPE, PLAN, lambda _: None) for _ in range(2))
    other = train(CYCLE, SHAPE, replace(PLAN, seed=2), lambda _: None)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert any((value != other[name]).any() for name, value in first.items())


def test_plan_counts_its_steps_and_tokens() -> None:
    assert (PLAN.steps, PLAN.tokens) == (35, 30 * 64 + 5 * 64)
