"""A hub or a node of the tunnel tests as a process that can be killed.

python -m tests.support.tunnel_child hub PORT | node PORT
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from emcd.errors import EmcdError
from emcd.net.tunnel import TunnelPeer, run_tunnel, serve_tunnels
from emcd.types import Address, ParticipantRole
from tests.support.tunnel_world import DOMAIN, HUB, NODE, drop_control, echo_call


async def _admit(address: Address, role: ParticipantRole) -> bool:
    return True


async def _on_peer(peer: TunnelPeer) -> None:
    """Call the node once, and tell how that was."""
    async with peer.call(b"m", b"x" * 100_000) as call:
        head, body, end = await call.whole(1 << 20)
    sys.stdout.write(f"answered {len(head)} {len(body)} {end.decode()}\n")
    sys.stdout.flush()
    await trio.sleep_forever()


async def hub(port: int) -> None:
    """Listen until killed."""
    serve = partial(
        serve_tunnels, host="127.0.0.1", port=port, key=HUB, domain=DOMAIN, on_peer=_on_peer, authorize=_admit
    )
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(serve)
        sys.stdout.write(f"listening {bound}\n")
        sys.stdout.flush()


async def node(port: int) -> None:
    """Stay connected until killed."""
    while True:
        try:
            await run_tunnel(
                f"ws://127.0.0.1:{port}",
                key=NODE,
                domain=DOMAIN,
                hub_address=HUB.address,
                on_call=echo_call,
                on_control=drop_control,
            )
        except EmcdError:
            await trio.sleep(0.1)


if __name__ == "__main__":
    trio.run({"hub": hub, "node": node}[sys.argv[1]], int(sys.argv[2]))
