"""Sockets: the HTTP server and clients, TLS, and the tunnel between hub and nodes."""
