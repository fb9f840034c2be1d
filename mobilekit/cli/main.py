"""Entry point of ``mobilekit``: finds the command, turns errors into two lines and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

import typer

from mobilekit.core import console, stopping
from mobilekit.core.errors import MobileKitError

COMMANDS = (
    "demo",
    "init",
    "run",
    "plan",
    "compress",
    "tokens",
    "recover",
    "export",
    "verify",
    "profile",
    "evaluate",
    "report",
    "push",
    "pull",
    "methods",
    "devices",
    "doctor",
)

# on import they warn about kernels and classes that nothing here uses
_NOISY = ("torchao", "torch.utils._pytree")
_INTERRUPTED = 130
# what a stop leaves behind, of the commands that keep something
_AFTER_STOP = {
    "compress": "Whole files are kept: run the same command again, and it goes on.",
    "demo": "Finished steps are kept: run the same command again, and it goes on.",
    "recover": "Run the same command again: training goes on.",
    "run": "Finished steps are kept: go on with --resume.",
}
_EPILOG = "Start here: mobilekit demo   ·   Then: mobilekit init && mobilekit run recipe.yaml"


def build_app() -> typer.Typer:
    """Return the application with every command; help is plain text, which is fast."""
    app = typer.Typer(
        name="mobilekit",
        help="Compress a model, export it to a phone, and prove that it got there.",
        epilog=_EPILOG,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(_root)
    for name in COMMANDS:
        module = importlib.import_module(f"mobilekit.cli.{name}")
        app.command(name, epilog=module.EPILOG)(module.main)
    return app


def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    if version:
        import mobilekit

        console.emit(f"mobilekit {mobilekit.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.status(context.get_help())
        raise typer.Exit(2)


def _explain_usage(error: typer.TyperException) -> None:
    """Show a wrong command or option in two lines, where typer takes four."""
    message = " ".join(error.format_message().split())
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context else "mobilekit"
    console.error(
        message[:1].lower() + message[1:].removesuffix("."),
        f"See {command} --help for its options.",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: Command and options; those of the process where ``None``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        verb = next((word for word in given if word in COMMANDS), "")
        with stopping.explained(_AFTER_STOP.get(verb, stopping.NOTHING_WRITTEN)):
            code = build_app()(given, standalone_mode=False)
            if code == _INTERRUPTED:  # what typer makes of a KeyboardInterrupt
                raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        _explain_usage(error)
        sys.exit(error.exit_code)
    except MobileKitError as error:
        if "--debug" in given:
            raise
        console.error(error.message, error.hint)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # the reader went away; without this, Python complains again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if "--debug" in given:
            raise
        where = f" ({error.filename})" if error.filename else ""
        console.error(
            f"{error.strerror or error}{where}",
            "Check the path, space and permissions.",
            on_every_rank=True,
        )
        sys.exit(2)
    except Exception as error:
        if "--debug" in given:
            raise
        what = " ".join(str(error).split())[:200]
        console.error(
            f"internal error: {type(error).__name__}: {what}".removesuffix(": "),
            "This is a fault in MobileKit: run it again with --debug and report what it shows.",
            on_every_rank=True,
        )
        sys.exit(1)
