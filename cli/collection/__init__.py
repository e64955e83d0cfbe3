"""The subcommands of `imagekin collection`."""
