"""The validator role: probes nodes through the hub, judges, votes, audits and attests rounds."""
