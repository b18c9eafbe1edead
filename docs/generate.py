"""Writes docs/cli.md from the commands' own --help: `make docs`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal.cli import cli

CLI = Path(__file__).parent / "cli.md"


def cli_page() -> str:
    """Markdown with the help of every command, 80 columns wide."""
    settings = {**cli.context_settings, "terminal_width": 80, "max_content_width": 80}
    root = click.Context(cli, info_name="tpcal", **settings)
    contexts = [root]
    contexts += [click.Context(c, parent=root, info_name=n) for n, c in cli.commands.items()]
    title = "# The command line\n\nGenerated from `--help` by `make docs`.\n"
    return "\n".join([title, *map(_section, contexts)])


def _section(context: click.Context) -> str:
    text = context.command.get_help(context)
    return f"## {context.command_path}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    CLI.write_text(cli_page(), encoding="utf-8")
