"""A program that records into a store, run as a process of its own: store_writer.py URL IMAGES NAME COUNT GROUP.

After every commit it prints the ids that were acknowledged. Every second result repeats the request id of the other
writers, as cameras do that retry through another gateway.
"""

from __future__ import annotations

import sys
from pathlib import Path

from store_support import make_picture, make_result

from auroraedge.inspection.results import Verdict
from auroraedge.store import NewResult, Store


def main() -> None:
    url, images, name, count, group = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    with Store.open(url, images=images, busy_timeout_s=20) as store:
        print("ready", flush=True)
        for start in range(0, count, group):
            entries = []
            for number in range(start, start + group):
                shared = number % 2 == 0
                request_id = f"shared-{number}" if shared else f"{name}-{number}"
                result = make_result(
                    number, Verdict.NG, result_id=f"{name}-{number}", request_id=request_id, part_id=name
                )
                picture = make_picture(number % 1000)
                entries.append(NewResult(result=result, image=picture, reference=make_picture(7777), fingerprint="f"))
            stored = store.record_many(entries)
            # One write for each line: a line cut by the kill is not an acknowledgement.
            for found in stored:
                sys.stdout.write(f"{found.seq} {found.result.result_id}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
