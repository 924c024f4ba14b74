"""``python -m edm2lite``: the command ``edm2lite``."""

from edm2lite.tools.edm2lite import main

main(prog_name="python -m edm2lite")
