"""`emcd chain deploy`: the plan file, its judgement, the rehearsal, the sending, the record."""
