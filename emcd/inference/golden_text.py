"""The sixteen texts that golden vectors are made of: lengths, scripts and kinds as in real traffic."""

from __future__ import annotations

from typing import Final

_LONG = (
    "The harbour master wrote down every ship that came in: its name, its flag, what it carried, how deep it"
    " lay in the water, and who had signed for the cargo. When two books disagreed he went to the quay"
    " himself and counted the crates, because a crate that nobody has counted is only a rumour. "
)

GOLDEN_TEXTS: Final = (
    "a",
    "Hello!",
    "What is the capital of Portugal, and which river runs through it?",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "SELECT name, COUNT(*) FROM calls WHERE round = 7 GROUP BY name ORDER BY 2 DESC;",
    "Écrivez une phrase sur la mer, le vent et les oiseaux du matin.",
    "Bitte erkläre in zwei Sätzen, warum der Himmel tagsüber blau ist.",
    "今日は天気がいいので、公園を散歩しました。",
    "Сколько будет семь умножить на восемь?",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    '{"name": "node-1", "models": ["a", "b"], "online": true, "load": 0.25}',
    (
        "Dear Ms Okafor, thank you for your letter of 3 May. We have looked into the matter and found that the"
        " parcel left our warehouse on time. Please accept our apologies for the delay."
    ),
    (
        "import trio\n\nasync def main() -> None:\n    async with trio.open_nursery() as nursery:\n"
        "        nursery.start_soon(trio.sleep, 1)\n\ntrio.run(main)\n"
    ),
    (
        "Once upon a time there was a small lighthouse whose keeper could not sleep. Every night he climbed the"
        " stairs, lit the lamp, and read the same page of the same book until the sun came up."
    ),
    "   Mixed   white\tspace, UPPER and lower case, punctuation?! (and brackets) -- dashes; 50 % & more…\n\n",
    _LONG * 6,
)
