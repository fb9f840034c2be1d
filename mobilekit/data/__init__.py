"""Text, token and image data: the embedded corpora, user files, calibration batches."""
