"""The subcommands of `kindred`, one module each; none of them loads anything heavy before it is run."""
