"""The power is cut after each single change of the storage: a command called again must lose nothing, wherever it was.

    python tests/chaos/cuts.py --out /tmp/cuts --workloads tune,train --every 1

Chance (chaos.py) seldom hits the moment between two files that belong together; this tries each. A change is a file that gets
its name, or that is deleted, by any process of the command; at the chosen one all of them are killed at once. One JSON line a
cut goes to `cuts.jsonl`; a campaign that is called again goes on. Needs a C compiler.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from chaos import PREPARED, WORDS, Alone, Call, Place, differences
from faults import preloaded, processes


def cut_power(workload: str, number: int, folder: Path, alone: Alone) -> dict[str, Any]:
    """Cut it after a change, call again, and compare; `wrong` of what is returned is empty if all is well.

    `is_last` where it makes fewer changes.
    """
    expected, *_ = alone.files(workload)
    shutil.rmtree(folder, ignore_errors=True)
    place, begun, wrong = Place(folder, None), time.monotonic(), list[str]()
    if workload in PREPARED:
        place.begin_with(alone.runs())
    reached = folder / "reached"
    counted = {
        **{"CHAOS_STORAGE": place.uri, "CHAOS_COUNT": str(folder / "count")},
        **{"CHAOS_NUMBER": str(number), "CHAOS_REACHED": str(reached)},
    }
    call = Call(place, workload, 0, preloaded("writes.c", folder) | counted)
    while not reached.exists() and not call.is_over():
        time.sleep(0.01)
    while processes(call.mark):
        call.kill()
        time.sleep(0.1)
    change = reached.read_text().strip() if reached.exists() else ""
    code, complaint = call.end()
    is_last = not change and code == 0
    wrong += [f"exit code {code} before any cut: {complaint}"] if not change and (code or complaint) else []
    if change:
        call = Call(place, workload, 1)
        code, complaint = call.end()
        wrong += [f"exit code {code}: {complaint}"] if code or complaint else []
        wrong += [f"outlived: {title}" for title in call.left()]
        call.kill()
    wrong += differences(expected, place.files())
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return {"change": change, "is_last": is_last, "seconds": round(time.monotonic() - begun), "wrong": wrong}


def main() -> None:
    """Cut the power after each change, or every so many, until a command has no more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workloads", default=",".join(WORDS), help="with commas")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    alone, record = Alone(arguments.out), arguments.out / "cuts.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    tried = {(line["workload"], line["number"]): line for line in map(json.loads, lines)}
    for workload in arguments.workloads.split(","):
        number = arguments.first
        while True:
            if (workload, number) not in tried:
                found = cut_power(workload, number, arguments.out / f"{workload}-{number}", alone)
                line = json.dumps({"workload": workload, "number": number, **found})
                print(line, flush=True)
                with record.open("a") as file:
                    file.write(line + "\n")
                tried[workload, number] = found
            if tried[workload, number]["is_last"]:
                break
            number += arguments.every


if __name__ == "__main__":
    main()
