"""Compressor: RMSNorm, W1, GELU and W2 over the token axis in one launch. See README.md."""
