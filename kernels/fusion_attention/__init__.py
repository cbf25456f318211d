"""Cross-attention of the prompt's tokens to the visual tokens, flash style. See README.md."""
