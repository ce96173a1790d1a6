"""The command line: `fastwhisper transcribe`, `pull`, `inspect`, `quantize`, `cache`, `doctor`."""
