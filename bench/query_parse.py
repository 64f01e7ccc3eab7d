"""What parsing costs: typical statements that no cache knows, and one that it does; SELECTs of 1 to 20 columns.

    python bench/query_parse.py [--rounds 2000]

The last line is one JSON object: microseconds of CPU a statement on one core. Wanted: below 150 for a typical SELECT,
below 5 for a text that was parsed before.
"""

from __future__ import annotations

import argparse
import json
import os
import time

from iotdb_cluster.sql import ParseContext, parse, parse_by_grammar, warm_up

CONTEXT = ParseContext()
STATEMENTS = {
    "star": "SELECT * FROM root.sg.d{n}",
    "typical": "SELECT s1, s2 FROM root.sg.d{n} WHERE time >= 1000 and time < 2000 and s1 > 3.5 LIMIT 10",
    "aggregation": "SELECT count(s1), avg(s1), max_value(s2) FROM root.sg.d{n} WHERE time > 2021-01-01T00:00:00",
    "windows": "SELECT avg(s1), last_value(s2) FROM root.sg.d{n} GROUP BY ([0, 86400000), 1h, 2h) ORDER BY TIME DESC",
    "last": "SELECT LAST s1, s2 FROM root.sg.d{n}",
    "columns_20": "SELECT " + ", ".join(f"s{at}" for at in range(20)) + " FROM root.sg.d{n}",
    "insert": "INSERT INTO root.sg.d{n}(timestamp, s1, s2, s3) VALUES (1000, 1.5, 2, 'abc')",
}


def cost_us(rounds: int, template: str, *, cached: bool) -> float:
    texts = [template.format(n=0 if cached else number) for number in range(rounds)]
    work = parse if cached or template.startswith("INSERT") else parse_by_grammar
    work(texts[0], CONTEXT)
    began = time.process_time()
    for text in texts:
        work(text, CONTEXT)
    return round((time.process_time() - began) / rounds * 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2_000)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"parses {len(STATEMENTS)} kinds of statements, {options.rounds} times each")
    began = time.perf_counter()
    warm_up()
    figures = {f"{name}_us": cost_us(options.rounds, text, cached=False) for name, text in STATEMENTS.items()}
    cached = cost_us(options.rounds, STATEMENTS["typical"], cached=True)
    ok = figures["typical_us"] < 150 and cached < 5
    result = {"target": "query_parse", "ok": ok, "seed": 1, **figures, "cached_us": cached}
    print(json.dumps({**result, "seconds": round(time.perf_counter() - began, 2)}))


if __name__ == "__main__":
    main()
