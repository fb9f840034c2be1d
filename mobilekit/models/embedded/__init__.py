"""The embedded default models: small, really trained, shipped with the package."""
