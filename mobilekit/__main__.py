"""``python -m mobilekit``."""

from mobilekit.cli.entry import main

if __name__ == "__main__":
    main()
