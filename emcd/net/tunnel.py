"""The tunnel between a hub and its nodes: the names that the roles use.

Hub: `serve_tunnels` and `TunnelPeer`; node: `run_tunnel` and `IncomingCall`.
"""

from __future__ import annotations

from emcd.net.tunnel_hub import serve_tunnels
from emcd.net.tunnel_link import TunnelLimits
from emcd.net.tunnel_node import IncomingCall, TunnelLink, run_tunnel
from emcd.net.tunnel_peer import OutgoingCall, TunnelPeer

__all__ = [
    "IncomingCall",
    "OutgoingCall",
    "TunnelLimits",
    "TunnelLink",
    "TunnelPeer",
    "run_tunnel",
    "serve_tunnels",
]
