"""RMSNorm with the residual addition before it, and sums of squares alone. See README.md."""
