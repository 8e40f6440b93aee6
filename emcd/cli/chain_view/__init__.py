"""`emcd chain status`: one look at a network's contracts, and how it is shown."""
