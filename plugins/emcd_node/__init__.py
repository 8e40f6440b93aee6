"""The compute node: serves AI models to a hub over a tunnel that it dials, and signs what it did."""
