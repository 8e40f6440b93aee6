"""Reading the API keys again and again: they rotate, and may come after the first start."""

from __future__ import annotations

from pathlib import Path

import trio

from emcd.errors import ConfigError
from emcd_validator.api_keys import FEW_KEYS, ApiKeys, load_api_keys
from emcd_validator.queries.key_uses import count_key_uses, prune_key_uses
from emcd_validator.validator import Validator

_KEPT_ROUNDS = 24


class KeyWatch:
    """Keeps one validator's keys as its file has them."""

    def __init__(self, validator: Validator, keys: ApiKeys, file: Path | None, variable: str) -> None:
        self._validator = validator
        self._keys = keys
        self._file = file
        self._variable = variable
        self._fresh = FEW_KEYS
        self.complaint = ""
        """Why probes can't be sent, or are easily known, for the role's health."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                read = await trio.to_thread.run_sync(load_api_keys, self._file, self._variable)
            except ConfigError as exc:
                self.complaint = str(exc)
            else:
                self._keys.replace(read)
                await self._look()
            await trio.sleep(self._validator.poll_s)

    async def _look(self) -> None:
        validator, known = self._validator, self._keys.hashes
        before = validator.current_round() - _KEPT_ROUNDS
        await validator.write(lambda con: prune_key_uses(con, validator.address, before, known))
        uses = await validator.read(lambda con: count_key_uses(con, validator.address))
        now_ms = validator.now_ms()
        self.complaint = self._keys.find_complaint(uses, now_ms)
        fresh = self._keys.count_fresh(uses, now_ms)
        if fresh < min(FEW_KEYS, self._fresh):
            validator.log.warning("few API keys", code="EMC-1860", fresh=fresh, advised=FEW_KEYS)
        self._fresh = fresh
