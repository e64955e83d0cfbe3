"""`python -m imagekin` is the `imagekin` command."""

from imagekin.cli.main import main

main()
