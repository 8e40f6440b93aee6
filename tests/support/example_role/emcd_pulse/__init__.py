"""An example of a role for emcd: it writes a beat into the ledger now and then."""
