"""A quorum that changes the network's parameters on an embedded chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from emcd.chain import Call
from emcd.keys import SigningKey
from emcd.proto.parameters import (
    ParametersChange,
    ParameterSet,
    document_hash,
    encode_document,
    make_change,
    next_set,
    rules_hash,
    rules_of,
)
from emcd.proto.params import ModelPrice, PriceTable
from emcd.types import Address
from tests.support.network import HOLDER, LiveNetwork

DEAR = PriceTable(1, ModelPrice(20_000_000_000, 20_000_000_000, 20_000))


def first_set(network: LiveNetwork) -> ParameterSet:
    return ParameterSet(network.deployment.params, network.deployment.prices)


def changed(before: ParameterSet, *, prices: PriceTable | None = None, **params: Any) -> ParameterSet:
    """The next set with these parameters, and these prices."""
    return next_set(before, msgspec.structs.replace(before.params, **params), prices)


def sign_change(
    network: LiveNetwork, change: ParametersChange, keys: Sequence[SigningKey]
) -> Mapping[Address, bytes]:
    domain = network.deployment.parameters_domain
    return {key.address: key.sign(domain, change) for key in keys}


def change_call(
    network: LiveNetwork, after: ParameterSet, from_epoch: int, keys: Sequence[SigningKey], number: int = 0
) -> Call:
    """The transaction that puts a set in force from an epoch, signed by these keys."""
    text = encode_document(after.params, after.prices)
    change = make_change(number or after.params.version, from_epoch, text)
    signatures = sign_change(network, change, keys)
    return network.chain.parameters.submit_change(change, rules_of(after.params), text, signatures)


async def publish_change(
    network: LiveNetwork, after: ParameterSet, from_epoch: int, keys: Sequence[SigningKey], number: int = 0
) -> None:
    await network.send(HOLDER, change_call(network, after, from_epoch, keys, number))


async def publish_text(
    network: LiveNetwork,
    text: str,
    like: ParameterSet,
    from_epoch: int,
    keys: Sequence[SigningKey],
    number: int,
) -> None:
    """Put a text in force that is no document of ours, with the rules of a set."""
    rules = rules_of(like.params)
    change = ParametersChange(number, from_epoch, rules_hash(rules), document_hash(text))
    signatures = sign_change(network, change, keys)
    await network.send(HOLDER, network.chain.parameters.submit_change(change, rules, text, signatures))
