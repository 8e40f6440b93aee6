"""Nodes that are reached through smart routers: their admission, their links, what is said of them."""
