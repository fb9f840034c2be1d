"""Export: capture → quantize → lower → serialise → verify. Imported as ``mobilekit.export``."""
