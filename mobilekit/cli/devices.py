"""``mobilekit devices``: where models can be profiled from here."""

from __future__ import annotations

from .common import Answer, command

EPILOG = "Examples: mobilekit devices   ·   mobilekit devices --json"


@command
def main() -> Answer:
    """List the devices that can be profiled from here."""
    from mobilekit import profile

    found = profile.list_devices()
    rows = []
    for entry in found:
        state = "ready" if entry["available"] else entry["reason"]
        # null, or not there where the device is not: then the state says why
        rows.append([entry["name"], state, entry.get("class") or "", entry.get("cpu") or ""])
    return Answer(found, headers=("device", "state", "class", "processor"), rows=rows)
