"""The terminal: consoles, progress, and the translation of errors into exit codes."""

from __future__ import annotations

import codecs
import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from tpcal.plans import redaction
from tpcal.plans.errors import TpcalError, excerpt
from tpcal.plans.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


_QUIET = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "KINETO_LOG_LEVEL": "6",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_PLAIN = {
    **dict.fromkeys("▏▎▍▌", "."),
    **dict.fromkeys("▋▊▉█", "#"),
    **dict(zip("▁▂▃▄▅▆▇", "_..--==", strict=True)),
    **{"─": "-", "━": "-", "·": "-", "–": "-", "−": "-", "→": "->", "◂": "<", "±": "+/-"},
    **{"×": "x", "…": "...", "✓": "ok", "≤": "<=", "≥": ">="},
}


_TYPED: list[str] = []
"""The words of the current command line."""


class Interrupted(TpcalError):
    """The user interrupted the command with Ctrl-C."""

    exit_code = 130


class Commands(click.Group):
    """A group of commands that report every failure with one line on stderr and an exit code.

    Args:
        resumable: Names of the commands that continue after an interruption.
    """

    def __init__(self, *args: Any, resumable: Sequence[str] = (), **extra: Any) -> None:
        super().__init__(*args, **extra)
        self._resumable = resumable
        self._debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; the error of an interruption states whether it can continue."""
        self._debug |= bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in self._resumable and "--no-keep" not in _TYPED
            then = "run the same command again to continue" if resumes else "no result was written"
            raise Interrupted(f"Interrupted; {then}.") from None

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line like click's ``main``, and exits with the codes of `explain`."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        self._debug = bool(os.environ.get("TPCAL_DEBUG"))
        _show_notes()
        words = list(sys.argv[1:] if args is None else args)
        _TYPED[:] = words
        try:
            _refuse_broken(words)
            extra["obj"] = short_command(words)
            code = super().main(words, prog_name, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except Exception as error:
            self._fail(error)
        sys.exit(code if isinstance(code, int) else 0)

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            _leave_pipe()
        if self._debug:
            import traceback

            click.echo(redacted("".join(traceback.format_exception(error))), err=True, nl=False)
        lines, code = explain(error)
        for line in lines:
            click.echo(f"tpcal: {redacted(line)}", err=True)
        sys.exit(code)


def _refuse_broken(words: Sequence[str]) -> None:
    """Raises a usage error for a word that no file of a result could hold."""
    for word in words:
        if word.isascii() and word.isprintable():
            continue
        from tpcal.plans.yaml_files import text_problem  # loads a parser, which few words need

        if text_problem(word):
            raise click.UsageError(
                f"Arguments must be Unicode text without escape characters; got {excerpt(word)!a}."
                " Rename the file."
            )


def _leave_pipe() -> NoReturn:
    """Exits without a message, because the reader of the output (head, less) has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def explain(error: Exception) -> tuple[list[str], int]:
    """The lines that tell the user about an error, and the exit code."""
    if isinstance(error, Interrupted | click.Abort):
        return [str(error) or "Interrupted."], Interrupted.exit_code
    if isinstance(error, TpcalError):
        return [f"error: {line}" for line in str(error).splitlines()], error.exit_code
    if isinstance(error, click.ClickException):
        return [f"error: {_click_message(error)}"], error.exit_code
    if is_out_of_memory(error):
        way_out = "a smaller --batch-size, --dtype bfloat16 or another --device"
        return [f"error: Out of memory; use {way_out}. Finished work is kept."], 1
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return [f"error: {where}{error.strerror}."], 1
    first = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
    text = f"{type(error).__name__}: {first}. 'tpcal --debug …' shows where it happened."
    return [f"error: {text}"], 1


def _click_message(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("(Did you mean", "Did you mean").replace("?)", "?")
    context = getattr(error, "ctx", None)
    if context is None:
        return f"{message}."
    end = "" if message.endswith("?") else "."
    return f"{message}{end} '{context.command_path} --help' shows the options."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error of Python, CUDA or torch's CPU allocator means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def be_quiet(environ: dict[str, str] | os._Environ[str]) -> None:
    """Silences the libraries in use, except for switches that the user has set."""
    for name, value in _QUIET.items():
        environ.setdefault(name, value)
    if os.environ.get("TPCAL_DEBUG"):
        return
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"tpcal(\.|$)")
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    warn(str(message))


def warn(text: str) -> None:
    """Prints a warning as one line on stderr."""
    if is_main_process():
        click.echo(f"tpcal: warning: {redacted(text)}", err=True)


def note(text: str) -> None:
    """Prints a note as one line on stderr."""
    if is_main_process():
        click.echo(f"tpcal: note: {redacted(text)}", err=True)


class _Notes(logging.Handler):
    """Shows what the library logs: warnings as `warn` does, the rest as `note` does."""

    def emit(self, record: logging.LogRecord) -> None:
        show = warn if record.levelno >= logging.WARNING else note
        show(record.getMessage())


_NOTES = _Notes()


def _show_notes() -> None:
    """Shows on stderr what the workflow logs."""
    logger = logging.getLogger("tpcal.workflow")
    logger.setLevel(logging.INFO)
    logger.addHandler(_NOTES)  # once, however often it is called


def survive_encodings() -> None:
    """Replaces characters that stdout or stderr cannot encode by ASCII characters."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        text = error.object[error.start : error.end]
        return "".join(_PLAIN.get(char, "?") for char in text), error.end

    codecs.register_error("tpcal", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="tpcal")


def is_main_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the first of the processes of `accelerate launch` or `torchrun`."""
    return environ.get("RANK", "0") == "0"


def console(*, stderr: bool = False) -> Console:
    """A rich console, without colours if there is no terminal or NO_COLOR is set.

    Of several processes started together, only the main one prints.
    """
    from rich.console import Console

    quiet = not is_main_process()
    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)


def picture(view: RenderableType, title: str) -> str:
    """The terminal output of a view as SVG, which needs no network, not even for a font."""
    import io
    import re

    from rich.console import Console

    screen = Console(record=True, width=84, file=io.StringIO(), highlight=False, markup=False)
    screen.print(view)
    return re.sub(r"@font-face \{.*?\}\s*", "", screen.export_svg(title=title), flags=re.DOTALL)


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback that shows (done, total, what) on stderr; a total of 0 means unknown.

    A terminal shows one bar with the time left. A log file gets one line every ten seconds.
    """
    screen = console(stderr=True)
    if not is_main_process():
        yield lambda done, total, what: None
        return
    if not screen.is_terminal:
        yield _Log()
        return
    from rich import progress as rich_progress

    columns: Sequence[rich_progress.ProgressColumn] = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.TextColumn("{task.fields[state]}"),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    bar = rich_progress.Progress(*columns, console=screen, transient=True, expand=True)
    with bar:
        yield _Bar(bar)


class _Bar:
    """Shows one task at a time; a smaller count or another total starts a new task."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: Any = None
        self._last = (0, 0)

    def __call__(self, done: int, total: int, what: str) -> None:
        state = f"{done}/{total}, left" if total else ""
        if self._task is None or total != self._last[1] or done < self._last[0]:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total or None, completed=done, state=state)
        else:
            self._bar.update(self._task, description=what, completed=done, state=state)
        self._last = (done, total)


class _Log:
    """Writes a plain line when the task changes, and then every ten seconds."""

    every_s = 10.0

    def __init__(self) -> None:
        self._what = ""
        self._next = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if not done or (what == self._what and now < self._next):
            return
        self._what, self._next = what, now + self.every_s
        click.echo(f"{what} {done}/{total}", err=True)


def command() -> str:
    """The current command line for provenance."""
    return str(click.get_current_context().obj)


def short_command(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> str:
    """The command line for provenance, without credentials and local paths."""
    import shlex

    shown = (redaction.redacted(word, *arguments, environ=environ) for word in arguments)
    return shlex.join(["tpcal", *(redaction.without_machine(word, environ) for word in shown)])


def redacted(text: str) -> str:
    """The text without the credentials of the command line and the environment."""
    return redaction.redacted(text, *_TYPED)


def keep_secrets() -> None:
    """Removes credentials from all log records and warnings from now on."""
    make, form = logging.getLogRecordFactory(), warnings.formatwarning

    def record(*args: Any, **extra: Any) -> logging.LogRecord:
        made = make(*args, **extra)
        # Some formatters, such as that of uvicorn, read the arguments of a record themselves.
        if isinstance(made.args, tuple):
            made.args = tuple(redacted(a) if isinstance(a, str) else a for a in made.args)
        message = made.getMessage()
        if redacted(message) != message:
            made.msg, made.args = redacted(message), None
        if made.exc_info:
            made.exc_text = redacted(logging.Formatter().formatException(made.exc_info))
        return made

    logging.setLogRecordFactory(record)
    warnings.formatwarning = lambda *args, **extra: redacted(form(*args, **extra))
