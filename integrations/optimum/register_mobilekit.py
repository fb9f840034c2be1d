"""``optimum-cli export mobile``: optimum's own command line hands over to ``mobilekit export``.

optimum loads every file of its namespace ``optimum.commands.register`` at start-up, so nothing
heavy is imported here, and nothing of MobileKit before the command runs.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

_EXAMPLES = """\
Examples:
  optimum-cli export mobile --model MODEL --out bundle
  optimum-cli export mobile --model MODEL --target onnx --precision int8 --out bundle
"""
# options that are passed on as they are: name, help, and whether they may be repeated
_VALUES = (
    ("target", "executorch, onnx or coreml; all by default. May be repeated.", True),
    ("precision", "fp32, fp16, int8 or int4; fp32 and int8 by default. May be repeated.", True),
    ("context-length", "Positions that the cache holds; 512 by default.", False),
    ("override", "PATTERN=PRECISION of some layers of the quantized artifacts.", True),
)
_SWITCHES = (
    ("ignore-estimates", "Go on where memory or disk is estimated not to suffice."),
    ("json", "Print one JSON document to stdout."),
    ("quiet", "No progress, only the result."),
    ("debug", "Show the traceback of an error."),
)


class MobileExportCommand(BaseOptimumCLICommand):
    """Export a checkpoint to a bundle for phones, each artifact verified."""

    COMMAND = CommandInfo(
        name="mobile",
        help="Export a language model for phones: ExecuTorch, ONNX, Core ML (by MobileKit).",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options, which are those of ``mobilekit export``."""
        parser.description = (
            "Write a bundle for phones: artifacts of a checkpoint, each verified against eager. "
            "See also: mobilekit export --help."
        )
        parser.epilog = _EXAMPLES
        parser.formatter_class = MobileExportCommand.COMMAND.formatter_class
        parser.add_argument(
            "-m", "--model", required=True, help="Checkpoint directory, or 'embedded'."
        )
        parser.add_argument("--out", required=True, help="Bundle directory to create.")
        for name, text, is_list in _VALUES:
            parser.add_argument(f"--{name}", action="append" if is_list else "store", help=text)
        for name, text in _SWITCHES:
            parser.add_argument(f"--{name}", action="store_true", help=text)

    def run(self) -> None:
        """Run ``mobilekit export``, its messages and exit codes included."""
        from mobilekit.cli.main import main

        given = vars(self.args)
        arguments = ["export", given["model"], "--out", given["out"]]
        for name, _, _ in _VALUES:
            value = given[name.replace("-", "_")]
            values = value if isinstance(value, list) else [] if value is None else [value]
            arguments += [part for item in values for part in (f"--{name}", item)]
        arguments += [f"--{name}" for name, _ in _SWITCHES if given[name.replace("-", "_")]]
        main(arguments)


REGISTER_COMMANDS = [(MobileExportCommand, ExportCommand)]
