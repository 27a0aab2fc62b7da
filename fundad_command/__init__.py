# SPDX-License-Identifier: Apache-2.0
"""The console command: what is outside of ``fundad_fast``, whose import takes seconds for torch."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line and exit code 130 from the first moment on."""
    try:
        from fundad_fast.cli import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
