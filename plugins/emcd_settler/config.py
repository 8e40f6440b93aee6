"""The settler's configuration; the fields are the keys of its `[[role]]` table."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.config import Fault, KeyFile, setting
from emcd.errors import ConfigError
from emcd.net.url_guard import parse_target


@dataclass(frozen=True)
class SettlerConfig:
    """See README.md for the whole table."""

    key: KeyFile = setting(
        doc="the key that sends the transactions and pays their gas; it has no other power"
    )
    hub_url: str = setting(doc="base URL of the hub: bundles and extraction requests are read there")
    hub_urls: tuple[str, ...] = setting(
        (), doc="further hubs that are read in the same way, when the first has not what is wanted"
    )
    publish_every_rounds: int | None = setting(
        None, minimum=1, maximum=4096, doc="how often a root is published; default: once an epoch"
    )
    submit_claims: bool = setting(True, doc="whether claims are sent for wallets that asked for it")
    least_claim_wei: str = setting(
        "1", pattern=r"[1-9][0-9]{0,77}", doc="an extraction of less is left to the wallet; in wei, as text"
    )
    poll_s: float | None = setting(
        None,
        minimum=0.05,
        maximum=600,
        doc="how often to look; default: a fifteenth of a round, 30 s at most",
    )
    peer_timeout_s: float = setting(
        10.0, minimum=0.5, maximum=120, doc="how long a validator may take to answer"
    )
    bundle_timeout_s: float = setting(
        300.0, minimum=1, maximum=3600, doc="how long a bundle may take to come"
    )

    def check(self) -> list[Fault]:
        faults = []
        for name, urls in (("hub_url", (self.hub_url,)), ("hub_urls", self.hub_urls)):
            for url in urls:
                try:
                    parse_target(url)
                except ConfigError as exc:
                    faults.append(Fault(name, exc.detail))
        return faults
