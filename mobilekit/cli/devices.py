"""``mobilekit devices``: where models can be profiled from here."""

from __future__ import annotations

from .common import Answer, command

EPILOG = "Examples: mobilekit devices   ·   mobilekit devices --json"


@command
def main() -> Answer:
    """List the devices that can be profiled from here."""
    from mobilekit import profile

    found = profile.list_devices()
    rows = [[str(d.get("name")), str(d.get("class")), str(d.get("cpu_model"))] for d in found]
    return Answer(found, headers=("device", "class", "processor"), rows=rows)
