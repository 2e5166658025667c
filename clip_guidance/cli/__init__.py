"""The command line: one thin file per subcommand. Nothing else in the package imports it."""
