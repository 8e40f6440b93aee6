"""emcd: one daemon, many roles, one network that pays for AI work that was really done."""

__version__ = "0.1.0"
