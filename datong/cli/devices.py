"""`datong devices`: what programs can run on, on this machine."""

from __future__ import annotations

from datong.cli import options
from datong.cli.console import print_json, show


def devices(as_json: options.Json = False) -> None:
    """List the devices of this machine.

    The evidence says how we know that programs run on them.
    """
    from rich.table import Table
    from rich.text import Text

    from datong.backends.registry import devices as present

    found = present()
    if as_json:
        print_json(
            [
                {
                    "name": d.name,
                    "description": d.description,
                    "memory_bytes": d.memory_bytes,
                    "evidence": d.evidence,
                    "attributes": dict(d.attributes),
                }
                for d in found
            ]
        )
        return
    table = Table("device", "description", "memory", "evidence", box=None, pad_edge=False)
    for d in found:
        table.add_row(Text(d.name), Text(d.description), f"{d.memory_bytes / 2**30:.1f} GiB", Text(d.evidence))
    show(table)
