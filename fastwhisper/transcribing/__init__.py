"""Audio -> segments: media files, mel spectrogram, windows of 30 s, word times."""
