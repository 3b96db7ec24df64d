"""python -m editkit: the command line without an installed script."""

from editkit.cli import main

main()
