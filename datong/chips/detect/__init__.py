"""Which AI chips are in this machine, and what keeps programs from using them.

Reads files and runs the vendors' tools; imports no vendor software and no torch.

    machine.py   the only thing that looks at the outside; a directory can stand for a machine
    find.py      five steps, weakest last: PCI id, device node, vendor tool, library, build of torch
    diagnose.py  what is missing, in plain words
    whole.py     both together; `here()` for this machine, once per process
"""

from datong.chips.detect.diagnose import diagnose, hurdles, usable
from datong.chips.detect.find import find
from datong.chips.detect.machine import Machine
from datong.chips.detect.result import Finding, Found, Reason
from datong.chips.detect.whole import Survey, here, survey

__all__ = ["Finding", "Found", "Machine", "Reason", "Survey", "diagnose", "find", "here", "hurdles", "survey", "usable"]
