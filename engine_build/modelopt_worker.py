"""Runs inside the export environment `modelopt`, and imports nothing of ours: an ONNX file in, a quantised one out.

python modelopt_worker.py SOURCE DESTINATION VIEWS.npz --mode int8 --method entropy
"""

import argparse
import re

import numpy as np
from modelopt.onnx.quantization import quantize


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("views", help="npz of the graph's inputs, one array a name, all views along the first axis")
    parser.add_argument("--mode", choices=("int8", "fp8", "int4"), required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--exclude", nargs="*", default=[], help="names of nodes that stay as they are")
    options = parser.parse_args()
    with np.load(options.views) as stored:
        views = {name: stored[name] for name in stored.files}
    quantize(
        onnx_path=options.source,
        quantize_mode=options.mode,
        calibration_data=views,
        calibration_method=options.method,
        # The linear layers and nothing else: attention products stay in 16 bits, as in our own graphs.
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in options.exclude],
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=options.destination,
    )


if __name__ == "__main__":
    main()
