"""The text of an answer as it grows: kept back is what may yet become a character, or a stop text.

Pure but for the tokenizer's table. Invariants: what was let out is never taken back; the text is that of
the tokens up to the first stop text, however tokens cut it; so it follows from the tokens and the stop
texts alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from emcd.inference.text_tokenizer import TextAssembler, TextTokenizer


class AnswerText:
    """One answer's text.

    Attributes:
        stopped: whether a stop text was met; nothing comes after that.
    """

    def __init__(self, tokenizer: TextTokenizer, stop_texts: Sequence[str] = ()) -> None:
        self._assembler = TextAssembler(tokenizer)
        self._stops = tuple(filter(None, stop_texts))
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take the next token. Returns: what may be let out."""
        return self._let_out(self._assembler.add(token))

    def finish(self) -> str:
        """The answer ended by itself. Returns: what was kept back."""
        return self._let_out(self._assembler.finish()) + self._drain()

    def _let_out(self, more: str) -> str:
        if self.stopped or not more:
            return ""
        self._held += more
        at = min((found for stop in self._stops if (found := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.stopped = True
            out, self._held = self._held[:at], ""
            return out
        keep = max((_count_begun(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _drain(self) -> str:
        out, self._held = self._held, ""
        return out


def _count_begun(text: str, stop: str) -> int:
    """How many of the last characters may be the begin of a stop text."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
