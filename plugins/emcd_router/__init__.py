"""The role `router`: holds nodes' tunnels near them, and joins one or more hubs."""
