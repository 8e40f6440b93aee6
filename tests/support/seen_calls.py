"""Probes as a node gets them: built from documents as an operator builds them, planned, sent, transformed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from emcd.inference.manifest import CheckedManifest
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.testing import make_key
from emcd_validator.corpus import Leaf
from emcd_validator.corpus_build import build_leaves
from emcd_validator.corpus_source import Document, split_code, split_prose
from emcd_validator.plan import Draws, Slot
from emcd_validator.probe_request import ProbeRequest, build_probe
from emcd_validator.profile import DEFAULT, Profile
from tests.support.text_pool import Text
from tests.support.user_calls import SeenCall

BEACON = keccak(b"beacon")
NODE = make_key("node").address


def count_tokens(text: str) -> int:
    """About what a tokenizer says."""
    return len(text) // 4 + 1


def list_leaves(
    texts: Sequence[Text], count: int, random: Random, profile: Profile = DEFAULT
) -> list[tuple[Leaf, str]]:
    """Leaves with their topic, taken from the documents in turn as the builder takes them."""
    topics: dict[str, list[Document]] = {}
    for text in texts:
        topics.setdefault(text.topic, []).append(make_document(text))
    sources = [(build_leaves(documents, profile, random), topic) for topic, documents in topics.items()]
    random.shuffle(sources)
    found: list[tuple[Leaf, str]] = []
    while sources and len(found) < count:
        left: list[tuple[Iterator[Leaf], str]] = []
        for leaves, topic in sources:
            leaf = next(leaves, None)
            if leaf is not None:
                found.append((leaf, topic))
                left.append((leaves, topic))
        sources = left
    return found[:count]


def make_document(text: Text) -> Document:
    """What the builder reads from a file with this text."""
    split = split_code if text.is_code else split_prose
    return Document(units=split(text.text), is_code=text.is_code)


def make_probe(leaf: Leaf, number: int, manifest: CheckedManifest) -> ProbeRequest:
    draws = Draws(keccak(b"seed %d" % number), BEACON)
    return build_probe(draws, Slot(NODE, 0), leaf, manifest, count_tokens)


def see(request: ProbeRequest, topic: str) -> SeenCall:
    """What the hub makes of a probe."""
    made = read_request(ENDPOINTS[request.path], request.body, evidence=True)
    return SeenCall(request.path, made.body, topic)


def see_probes(leaves: Sequence[tuple[Leaf, str]], manifest: CheckedManifest) -> list[SeenCall]:
    return [see(make_probe(leaf, number, manifest), topic) for number, (leaf, topic) in enumerate(leaves)]
