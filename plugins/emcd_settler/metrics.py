"""What the settler counts."""

from __future__ import annotations

from emcd.metrics import counter

PUBLICATIONS = counter(
    "emcd_settler_publications_total", "Rounds by how their publication ended.", ("state",)
)
CLAIMS = counter("emcd_settler_claims_total", "Extraction requests by how they ended.", ("state",))
EQUIVOCATIONS = counter(
    "emcd_settler_equivocations_total", "Validators seen with two signed outcomes of a round."
)
SLASHES = counter("emcd_settler_slashes_total", "Orders to slash by how they ended.", ("state",))
