"""The ground floor: registry, errors, console, files, seeds, devices. Imports no other room."""
