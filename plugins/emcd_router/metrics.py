"""The router's numbers for Prometheus."""

from __future__ import annotations

from emcd.metrics import counter, gauge

NODES = gauge("emcd_router_nodes", "Nodes whose tunnels are held.", ("hub",))
IN_FLIGHT = gauge("emcd_router_calls_in_flight", "Calls being relayed.", ("hub",))
HUBS = gauge("emcd_router_hubs_connected", "Hubs that are connected.")
CALLS = counter("emcd_router_calls_total", "Calls by how they ended: ok, or the code.", ("hub", "end"))
REFUSED = counter("emcd_router_nodes_refused_total", "Nodes that were not held, by code.", ("code",))
DROPPED = counter("emcd_router_messages_dropped_total", "Messages to nodes that did not read them.")
