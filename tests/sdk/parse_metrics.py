"""Reads a scrape with the parsers of the official Prometheus client and prints what they understood.

    parse_metrics.py openmetrics|text < scrape

One JSON line for each metric family: its name and type, and its samples as [name, labels, value, exemplar's labels], with the
value as text, since JSON knows no infinity. What the parser does not accept ends it with an error.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

parse = {"openmetrics": openmetrics, "text": text}[sys.argv[1]]
for family in parse(sys.stdin.read()):
    samples = [
        [sample.name, sample.labels, repr(float(sample.value)), sample.exemplar.labels if sample.exemplar else None]
        for sample in family.samples
    ]
    print(json.dumps({"name": family.name, "type": family.type, "help": family.documentation, "samples": samples}))
