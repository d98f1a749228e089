"""The `xgen-mm` command: one module per subcommand, listed in `main.COMMANDS`."""
