"""A model's standing as operators set it: by word, and gone when it is in shadow again."""

from __future__ import annotations

import pytest

from emcd.cli.parameter_edit import assign, list_values
from emcd.proto.parameters import ParameterSet
from emcd.proto.params import ModelStanding, PriceTable, mainnet_params

ONE, TWO = "0x" + "ab" * 32, "0x" + "0c" * 32
BASE = ParameterSet(mainnet_params(0), PriceTable())


def test_standing_is_set_by_word_and_rows_stay_in_order() -> None:
    changed = assign(BASE, f"params.models.{ONE}", "enforced")
    changed = assign(changed, f"params.models.{TWO}", "delisted")

    assert changed.params.models == ((TWO, ModelStanding.DELISTED), (ONE, ModelStanding.ENFORCED))
    assert (f"params.models.{ONE}", "enforced") in list_values(changed)
    assert assign(changed, f"models.{TWO}", "shadow").params.models == ((ONE, ModelStanding.ENFORCED),)
    for name, value in list_values(changed):
        if name.startswith("params.models."):
            assert assign(changed, name, value) == changed


@pytest.mark.parametrize("value", ["", "enforce", "1", 1, "ENFORCED"])
def test_standing_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="shadow, enforced, delisted"):
        assign(BASE, f"params.models.{ONE}", value)


def test_whole_catalogue_is_no_single_value() -> None:
    with pytest.raises(ValueError, match="no parameter 'models'"):
        assign(BASE, "params.models", "enforced")
