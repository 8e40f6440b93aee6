"""`emcd chain`: deploying a network, looking at it, and what a quorum or the guardian does with it."""

from __future__ import annotations

import click

from emcd.cli.chain_deploy import deploy, plan
from emcd.cli.chain_guardian import pause, unpause
from emcd.cli.chain_params import params
from emcd.cli.chain_status import status


@click.group()
def chain() -> None:
    """Deploy a network's contracts, look at them, change parameters, pause.

    Whatever would spend or sign is a dry run unless --send (or an output file) is given.
    """


for command in (plan, deploy, status, params, pause, unpause):
    chain.add_command(command)
