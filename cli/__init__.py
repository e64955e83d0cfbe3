"""The command `imagekin`: one file per subcommand, none of which loads anything heavy before it runs."""

if __name__ != "imagekin.cli":
    raise ImportError("import imagekin.cli, not cli: under two names, every class would exist twice")
