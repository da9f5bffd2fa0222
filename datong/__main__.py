"""`python -m datong`: the command line without its script."""

from datong.cli import main

main()
