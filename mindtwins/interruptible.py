"""Imported by scripts, before what imports MindSpore: from here on Ctrl-C is one line.

For its effect on the process, which `errors.run_cli` has as well, but only once it is called.
"""

from __future__ import annotations

from mindtwins.errors import take_interrupts

take_interrupts()
