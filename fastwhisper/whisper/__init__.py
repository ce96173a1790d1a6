"""Whisper: network, tokenizer, decoding of one window, word alignment. Arrays in, tokens out."""
