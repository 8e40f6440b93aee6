"""Probes to a text model the whole way: planned, cut to the context, sent as a user, answered, signed for."""

from __future__ import annotations

from pathlib import Path
from random import Random

import trio

from emcd.proto.hashing import keccak
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.hub_client import HubClient
from emcd_validator.model import find_judged
from emcd_validator.plan import Draws, Slot
from emcd_validator.profile import Profile
from emcd_validator.statement import read_receipt
from emcd_validator.token_count import request_variants
from tests.support.decoder_model import ToyDecoder
from tests.support.decoder_model import toy_decoder as toy_decoder  # noqa: PLC0414 (a fixture)
from tests.support.hub_world import node_key
from tests.support.text_world import TEXT_MODEL, text_world

PROFILE = Profile(long=0.25, max_tokens=((4, 1.0), (8, 1.0)))


async def test_probes_to_a_text_node_are_answered_and_come_as_they_were_signed(
    tmp_path: Path, toy_decoder: ToyDecoder
) -> None:
    shapes = set()
    async with text_world(tmp_path, toy_decoder) as world:
        model = find_judged(TEXT_MODEL, tmp_path / "models")
        client = HubClient(world.hub.url)
        for number, leaf in enumerate(generate_leaves(16, Random(3), PROFILE)):
            draws = Draws(keccak(b"%d" % number), keccak(b"beacon"))
            asked = request_variants(draws, Slot(node_key(0).address, 0), leaf, model)[number % 2]
            got = await client.send_probe(asked.path, asked.body, world.hub.api_key, 20)
            assert got.status == 200, got
            assert leaf.call is not None
            shapes.add((asked.path, leaf.call.stream, leaf.call.is_long))
            with trio.fail_after(10):
                while (data := await client.fetch_receipt(got.call_id, world.hub.api_key)) is None:
                    await trio.sleep(0.05)
            call = read_receipt(data)
            assert call.receipt is not None
            assert keccak(got.body) == call.delivery.body_hash == call.receipt.response_hash
            assert call.forward.model_hash == model.model_hash
            if leaf.call.is_long:
                assert call.receipt.output_tokens == 1
                assert 0.6 < call.receipt.input_tokens / toy_decoder.shape.context < 1
    assert {stream for _, stream, _ in shapes} == {is_long for _, _, is_long in shapes} == {True, False}
    assert len({path for path, _, _ in shapes}) == 2
