"""One module or folder a suite; ``mobilekit.evaluate.SUITES`` names them."""
