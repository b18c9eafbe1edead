"""Writes docs/cli.md from the commands' own --help: `make docs`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal.cli import cli

CLI = Path(__file__).parent / "cli.md"


def cli_page() -> str:
    """Markdown with the help of every command, 80 columns wide."""
    parts = ["# The command line\n\nGenerated from `--help` by `make docs`.\n"]
    parts.append(_section(cli, "tpcal"))
    parts += [_section(command, f"tpcal {name}") for name, command in cli.commands.items()]
    return "\n".join(parts)


def _section(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=80, max_content_width=80)
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    CLI.write_text(cli_page(), encoding="utf-8")
