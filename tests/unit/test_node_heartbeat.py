"""Statuses: signed, ever later, with manifests when the hub needs them."""

from __future__ import annotations

from emcd.clock import ManualClock
from emcd.inference.manifest import EngineManifest, Manifest, decode_manifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.proto.control import StatusMessage, decode_control
from emcd.proto.signing import require_signer
from emcd_node.heartbeat import Heartbeat, Load
from tests.support.node_network import DOMAIN, HUB_KEY, NODE_KEY


def _heartbeat(manifests: list[Manifest], clock: ManualClock) -> Heartbeat:
    return Heartbeat(
        NODE_KEY, DOMAIN, HUB_KEY.address, clock, "1.2.3", "1x GPU", lambda: Load(manifests, 8, 3)
    )


def _read(message: bytes) -> StatusMessage:
    status = decode_control(message)
    assert isinstance(status, StatusMessage)
    require_signer(DOMAIN, status.status, status.signature, NODE_KEY.address)
    return status


def test_make_says_what_is_served_and_signs_it() -> None:
    clock = ManualClock()
    manifests: list[Manifest] = [EngineManifest(name="b"), MINILM_MANIFEST, EngineManifest(name="a")]
    message = _read(_heartbeat(manifests, clock).make())
    status = message.status
    assert status.models == tuple(sorted(model_hash(item) for item in manifests))
    assert [model_hash(decode_manifest(data)) for data in message.manifests] == list(status.models)
    assert (status.capacity, status.in_flight, status.version, status.gpu) == (8, 3, "1.2.3", "1x GPU")
    assert (status.node, status.hub) == (NODE_KEY.address, HUB_KEY.address)
    assert status.sent_at_ms == clock.now_ms()


def test_make_sequence_grows_with_and_without_the_clock_and_over_restarts() -> None:
    clock = ManualClock()
    heartbeat = _heartbeat([], clock)
    sequences = [_read(heartbeat.make()).status.sequence for _ in range(3)]
    clock.advance(-100)
    sequences.append(_read(heartbeat.make()).status.sequence)
    clock.advance(200)
    sequences.append(_read(_heartbeat([], clock).make()).status.sequence)
    assert sequences == sorted(set(sequences))


def test_make_manifests_go_out_first_after_a_change_and_after_reset() -> None:
    manifests: list[Manifest] = [MINILM_MANIFEST]
    heartbeat = _heartbeat(manifests, ManualClock())
    sent = [len(_read(heartbeat.make()).manifests)]
    sent.append(len(_read(heartbeat.make()).manifests))
    manifests.append(EngineManifest(name="m"))
    sent.append(len(_read(heartbeat.make()).manifests))
    sent.append(len(_read(heartbeat.make()).manifests))
    heartbeat.reset()
    sent.append(len(_read(heartbeat.make()).manifests))
    manifests.clear()
    sent.append(len(_read(heartbeat.make()).manifests))
    assert sent == [1, 0, 2, 0, 2, 0]
