"""Where the process starts: signals are heard before anything that takes time is imported."""

from __future__ import annotations

from mobilekit.core import stopping


def main() -> None:
    """Run the command line and exit."""
    stopping.listen()
    with stopping.explained():
        from .main import main as run

        run()
