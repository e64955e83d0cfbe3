"""Run the `imagekin` command as `python -m imagekin`."""

from imagekin.cli.main import main

main()
