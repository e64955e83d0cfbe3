"""The command `imagekin`, one file a subcommand; none of them loads anything heavy before it is run."""

if __name__ != "imagekin.cli":
    raise ImportError("import imagekin.cli, not cli: under two names, every class would exist twice")
