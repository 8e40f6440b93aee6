"""The tunnel between a hub and its nodes: the names that the roles use.

Hub: `serve_tunnels` and `TunnelPeer`; node: `run_tunnel` and `IncomingCall`.
"""

from __future__ import annotations

from emcd.net.tunnel_call import OutgoingCall
from emcd.net.tunnel_hub import serve_tunnels
from emcd.net.tunnel_incoming import IncomingCall, TunnelLink
from emcd.net.tunnel_link import TunnelLimits
from emcd.net.tunnel_node import run_tunnel
from emcd.net.tunnel_peer import TunnelPeer
from emcd.proto.tunnel_hub import HubCall

__all__ = [
    "HubCall",
    "IncomingCall",
    "OutgoingCall",
    "TunnelLimits",
    "TunnelLink",
    "TunnelPeer",
    "run_tunnel",
    "serve_tunnels",
]
