"""Tokens and bytes: exact, incremental, and found again; answers that grow, and stop texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from emcd.errors import ConfigError
from emcd.inference.answer_text import AnswerText
from emcd.inference.text_tokenizer import TextAssembler, TextTokenizer
from tests.support.decoder_model import ToyDecoder, toy_decoder

__all__ = ["toy_decoder"]


@pytest.fixture(scope="module")
def tokenizer(toy_decoder: ToyDecoder) -> TextTokenizer:
    return TextTokenizer(toy_decoder.tokenizer)


def make_pieces_tokenizer(folder: Path) -> TextTokenizer:
    """As SentencePiece vocabularies are written: a mark for spaces, bytes for what is not in it."""
    words = ["<unk>", "</s>", "\u2581the", "\u2581fox", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    inner.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"model": 1}', b"\xff"])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match="EMC-1652"):
        TextTokenizer(tmp_path / "tokenizer.json")


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1652"):
        TextTokenizer(tmp_path / "tokenizer.json")


def test_tokens_of_any_text_are_its_bytes(tokenizer: TextTokenizer) -> None:
    @given(st.text())
    def check(text: str) -> None:
        ids = tokenizer.encode(text, specials=False)
        if not any(map(tokenizer.is_special, ids)):
            assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
            assert tokenizer.decode(ids) == text
            assembler = TextAssembler(tokenizer)
            assert "".join(map(assembler.add, ids)) + assembler.finish() == text

    check()


def test_text_of_any_tokens_is_the_same_piece_by_piece(tokenizer: TextTokenizer) -> None:
    @given(st.lists(st.integers(0, tokenizer.vocab_tokens - 1)))
    def check(ids: list[int]) -> None:
        answer = AnswerText(tokenizer)
        assert "".join(map(answer.add, ids)) + answer.finish() == tokenizer.decode(ids)

    check()


def test_every_token_is_found_by_its_name_and_bytes(tokenizer: TextTokenizer) -> None:
    for token in range(tokenizer.vocab_tokens):
        assert token in tokenizer.find_named(tokenizer.token_name(token))
        assert token in tokenizer.find_tokens(tokenizer.token_bytes(token))
    assert tokenizer.token_name(tokenizer.vocab_tokens) == f"token_id:{tokenizer.vocab_tokens}"
    assert tokenizer.find_named("no such token") == ()
    assert tokenizer.find_named("bytes:\\xzz") == ()


def test_byte_that_is_no_text_has_a_name_of_bytes(tokenizer: TextTokenizer) -> None:
    (token,) = tokenizer.find_tokens(b"\xe2")
    assert tokenizer.token_name(token) == "bytes:\\xe2"
    assert tokenizer.token_text(token) == "\ufffd"


def test_special_tokens_are_no_text(tokenizer: TextTokenizer) -> None:
    (end,) = tokenizer.encode("<|im_end|>", specials=False)
    assert tokenizer.is_special(end)
    assert tokenizer.decode([end]) == ""
    assert tokenizer.token_text(end) == "<|im_end|>"
    assert tokenizer.name_of(end) == "<|im_end|>"
    assert tokenizer.name_of(None) == ""
    assert tokenizer.token_bytes(10**6) == b""


def test_pieces_vocabulary_has_spaces_and_bytes(tmp_path: Path) -> None:
    tokenizer = make_pieces_tokenizer(tmp_path)
    euro = [tokenizer.find_tokens(bytes([byte]))[-1] for byte in "\u20ac".encode()]
    assert tokenizer.decode([2, 3, 4, *euro, 1]) == " the foxs\u20ac"
    assert tokenizer.find_tokens(b"s") == (4, 5 + ord("s"))  # a vocabulary with doubles


def feed(tokenizer: TextTokenizer, text: bytes, *stops: str) -> tuple[list[str], AnswerText]:
    answer = AnswerText(tokenizer, stops)
    return [answer.add(tokenizer.find_tokens(bytes([byte]))[0]) for byte in text], answer


def test_answer_holds_a_character_back_until_it_is_whole(tokenizer: TextTokenizer) -> None:
    out, _ = feed(tokenizer, "a\u20acb".encode())
    assert out == ["a", "", "", "\u20ac", "b"]


def test_answer_that_ends_within_a_character_says_so(tokenizer: TextTokenizer) -> None:
    out, answer = feed(tokenizer, b"a\xe2\x82")
    assert "".join(out) == "a"
    assert answer.finish() == "\ufffd"


def test_answer_stops_before_a_stop_text_across_tokens(tokenizer: TextTokenizer) -> None:
    out, answer = feed(tokenizer, b"one STOP two", "STOP", "two")
    assert "".join(out) == "one "
    assert answer.stopped
    assert answer.finish() == ""


def test_answer_lets_out_what_only_looked_like_a_stop_text(tokenizer: TextTokenizer) -> None:
    out, answer = feed(tokenizer, b"STO\nSTOSTO", "STOP")
    assert out == ["", "", "", "STO\n", "", "", "", "STO", "", ""]
    assert answer.finish() == "STO"
    assert not answer.stopped


def test_answer_stops_at_the_first_stop_text_however_tokens_cut_it(tokenizer: TextTokenizer) -> None:
    @given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
    def check(text: str, stops: list[str]) -> None:
        parts, answer = feed(tokenizer, text.encode(), *stops)
        said = "".join(parts) + answer.finish()
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        if not ends:
            assert (said, answer.stopped) == (text, False)
            return
        seen = text[: min(ends)]
        assert answer.stopped
        assert said == seen[: min(seen.find(stop) for stop in stops if stop in seen)]

    check()
