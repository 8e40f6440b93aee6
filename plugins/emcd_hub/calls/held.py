"""What an answer holds by itself: the ids of its tokens, and its text. Pure.

A node of a model that can be verified names every token it read and wrote. That is the most it is paid
for: who claims more tokens than it names is charged for those it names. Who names more than there were is
found out by who recomputes, and by who counts the text (`counts`). Memory is bounded: of an answer beyond
the bounds only the number of tokens is known.
"""

from __future__ import annotations

from typing import Final

from emcd_hub.calls.evidence import Piece

MAX_TEXT_BYTES: Final = 1 << 20
MAX_IDS: Final = 1 << 17


class Held:
    """An answer as far as it came.

    Attributes:
        prompt_tokens, tokens: how many ids it names; None: none, or not all.
        ids, texts: of one choice; None once they are too many to be kept.
        pieces: parts with text in them; size: bytes of all texts.
    """

    __slots__ = ("_is_bare", "_is_one", "ids", "pieces", "prompt_tokens", "size", "texts", "tokens")

    def __init__(self, inputs: int = 1) -> None:
        """
        Args:
            inputs: prompts of the call; of several, an answer names the first one's tokens, or each one's own.
        """
        self._is_one = inputs == 1
        self._is_bare = False
        self.prompt_tokens: int | None = None
        self.tokens: int | None = None
        self.ids: list[int] | None = []
        self.texts: list[bytes] | None = []
        self.pieces = self.size = 0

    def add(self, piece: Piece) -> None:
        """The next part of it."""
        if self.prompt_tokens is None and self._is_one:
            self.prompt_tokens = piece.prompt_tokens
        if piece.is_bare:
            self._is_bare, self.tokens, self.ids = True, None, None
        if piece.ids is not None and not self._is_bare:
            self.tokens = (self.tokens or 0) + len(piece.ids)
            if self.ids is not None:
                self.ids += piece.ids
                if len(self.ids) > MAX_IDS:
                    self.ids = None
        self.pieces += bool(piece.texts)
        for text in piece.texts:
            self.size += len(text)
            if self.texts is not None:
                self.texts.append(text)
        if self.size > MAX_TEXT_BYTES:
            self.texts = None

    def bound(self, claimed: tuple[int, int]) -> tuple[int, int]:
        """What can be proven of the tokens that a node claims."""
        entered, made = claimed
        if self.prompt_tokens is not None:
            entered = min(entered, self.prompt_tokens)
        if self.tokens is not None:
            made = min(made, self.tokens)
        return entered, made
