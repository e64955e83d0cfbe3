"""Share between subcommands: options, settings, the console, sources of images, engines."""
