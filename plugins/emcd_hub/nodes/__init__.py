"""The nodes behind the hub: who may join, who is online, who gets a call."""
