"""The command line: thin files, one a subcommand. Nothing in the package imports it."""
