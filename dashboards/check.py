#!/usr/bin/env python3
"""Checks every dashboard and alert file of this folder. Python's standard library is all it needs.

Beyond what a schema can say: panels neither overlap nor go missing, each panel gets a query of a kind it can draw,
formulas and variables name things that exist, alerts can fire, links to the documentation lead somewhere, and every
metric, label and attribute is one of names.json (which a Rust test compares with the rules inside the binary).

Where `promtool` is installed, rules and the queries of the Grafana dashboard are parsed and the rule tests run; with
--need-promtool its absence is a failure. Where the environment variable SIGNOZ_VALIDATE names a program, it is called
as `$SIGNOZ_VALIDATE dashboard FILE...` and `$SIGNOZ_VALIDATE rule FILE...`.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
NAMES = json.loads((HERE / "names.json").read_text())
METRICS = NAMES["metrics"]
mistakes = []


def mistake(where, what):
    mistakes.append(f"{where}: {what}")


# ---- Names ------------------------------------------------------------------------------------------------------

def base_metric(series):
    """The metric a series belongs to, or None: X_bucket (Prometheus) and X.bucket (SigNoz) belong to histogram X."""
    if series in METRICS:
        return series if METRICS[series]["type"] == "counter" else None
    match = re.fullmatch(r"(.+)[_.](bucket|sum|count)", series)
    if match and METRICS.get(match[1], {}).get("type") == "histogram":
        return match[1]
    return None


def labels_of(series):
    base = base_metric(series)
    return set(METRICS[base]["labels"]) | ({"le"} if series.endswith("bucket") else set()) if base else set()


TARGET_LABELS = {"job", "instance"}
FUNCTIONS = set("sum by rate increase histogram_quantile vector and on or unless offset le label_values without".split())


def check_promql(where, expression):
    """Metric names and labels of an expression, without a full parser: selectors are NAME{...}; the rest are words."""
    text = re.sub(r"\[[^\]]*\]", "", expression)
    mentioned, labels = set(), []
    for name, selector in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", text):
        mentioned.add(name)
        labels += [(name, label) for label in re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", selector)]
    grouped = [label.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", text) for label in group.split(",")]
    bare = re.sub(r"\{[^}]*\}|\bby\s*\([^)]*\)|\bon\s*\([^)]*\)", " ", text)
    mentioned |= {w for w in re.findall(r"(?<![\w.$])[a-zA-Z_:][\w:]*", bare) if w not in FUNCTIONS and w != "d"}
    mentioned = {w for w in mentioned if not re.fullmatch(r"\d*[smhdw]", w)}
    if not mentioned:
        mistake(where, "names no metric")
    for name in mentioned - {"up"}:
        if not base_metric(name):
            mistake(where, f"{name} is not a metric of the catalogue")
    for name, label in labels:
        if label not in labels_of(name) | TARGET_LABELS:
            mistake(where, f"{name} has no label {label}")
    for label in grouped:
        for name in mentioned - {"up"}:
            if label not in labels_of(name) and label != "le":
                mistake(where, f"{name} has no label {label} to group by")
    if re.search(r"histogram_quantile\(\s*[\d.]+\s*,\s*rate", text):
        mistake(where, "a quantile over several series needs sum by (le, ...) inside")
    if re.search(r"\b(rate|increase|histogram_quantile)\s*\([^()]*(\([^()]*\)[^()]*)*\)\s*by\b", text):
        mistake(where, "by (...) belongs to an aggregation")
    for top, bound in re.findall(r"histogram_quantile\([^,]+,.*?(\w+)_bucket.*?\)\)\)\s*>\s*([\d.]+)", text, re.S):
        buckets = METRICS.get(top, {}).get("buckets", [])
        if buckets and float(bound) >= buckets[-1]:
            mistake(where, f"can never fire: a quantile of {top} is at most {buckets[-1]}")


def check_filter(where, expression, signal, metric_name, variables):
    words = re.sub(r"'[^']*'", " '' ", expression)
    for name in re.findall(r"\$(\w+)", words):
        if name not in variables:
            mistake(where, f"no variable ${name}")
    words = re.sub(r"\$\w+", " ", words)
    known = set(NAMES["span_attributes"] + NAMES["resource_attributes"] + NAMES["span_fields"])
    if signal == "metrics":
        known = labels_of(metric_name)
    grammar = {"AND", "OR", "NOT", "IN", "EXISTS", "CONTAINS", "true", "false"}
    for word in re.findall(r"[a-zA-Z_][\w.]*", words):
        if word not in grammar and word not in known:
            mistake(where, f"{word} is not known of {metric_name or 'spans'}")
    for name in re.findall(r"(?<![\w.])name = '([^']*)'", expression):
        if name not in NAMES["span_names"]:
            mistake(where, f"no span is called {name}")


# ---- SigNoz -----------------------------------------------------------------------------------------------------

PANELS = {  # panel kind: (request kinds, query kinds)
    "TimeSeriesPanel": ({"time_series"}, {"BuilderQuery", "CompositeQuery", "Formula", "PromQLQuery"}),
    "BarChartPanel": ({"time_series"}, {"BuilderQuery", "CompositeQuery", "Formula", "PromQLQuery"}),
    "NumberPanel": ({"scalar"}, {"BuilderQuery", "CompositeQuery", "PromQLQuery"}),
    "TablePanel": ({"scalar"}, {"BuilderQuery", "CompositeQuery"}),
    "PieChartPanel": ({"scalar"}, {"BuilderQuery", "CompositeQuery"}),
    "ListPanel": ({"raw"}, {"BuilderQuery"}),
}
TAG_KEY = re.compile(r"^[a-zA-Z$_@{#][a-zA-Z0-9$_@#{}:/-]{0,31}$")
TAG_VALUE = re.compile(r"^[a-zA-Z0-9$_@#{}:.+=/-]{0,32}$")
RESERVED = {"name", "description", "created_at", "updated_at", "created_by", "locked", "source"}


def check_builder(where, spec, variables, *, scalar=False, raw=False):
    signal = spec["signal"]
    group = [k["name"] for k in spec["groupBy"]]
    aggregates = set()
    metric_name = ""
    if raw and spec["aggregations"]:
        mistake(where, "a list shows spans, not aggregates")
    if not raw and not spec["aggregations"]:
        mistake(where, "nothing is aggregated")
    for aggregation in spec["aggregations"]:
        if signal == "metrics":
            metric_name = aggregation["metricName"]
            base = base_metric(metric_name)
            if not base:
                mistake(where, f"{metric_name} is not a metric of the catalogue")
            percentile = aggregation["spaceAggregation"].startswith("p")
            if percentile != (aggregation["timeAggregation"] == ""):
                mistake(where, "a percentile has no time aggregation, a counter has one")
            if percentile and not metric_name.endswith(".bucket"):
                mistake(where, "a percentile needs the buckets of a histogram")
            if scalar and not aggregation.get("reduceTo"):
                mistake(where, "one number needs reduceTo")
        else:
            expression = aggregation["expression"]
            if not re.fullmatch(r"(count|sum|p50|p95|p99|count_distinct)\(([\w.]*)\)", expression):
                mistake(where, f"not one call: {expression}")
            field = re.sub(r"^\w+\(|\)$", "", expression)
            if field and field not in NAMES["span_attributes"] + NAMES["span_fields"]:
                mistake(where, f"no attribute {field}")
            aggregates |= {expression, aggregation.get("alias")}
    check_filter(where, spec["filter"]["expression"], signal, metric_name, variables)
    for name in group:
        known = labels_of(metric_name) if signal == "metrics" else set(
            NAMES["span_attributes"] + NAMES["resource_attributes"] + NAMES["span_fields"])
        if name not in known:
            mistake(where, f"cannot group by {name}")
    for order in spec["order"]:
        if order["key"]["name"] not in aggregates | set(group) | {"__result"} | ({"timestamp"} if raw else set()):
            mistake(where, f"cannot order by {order['key']['name']}")
    for label in re.findall(r"\{\{([^}]*)\}\}", spec["legend"]):
        if label not in group:
            mistake(where, f"the legend names {label}, which is not grouped by")


def check_composite(where, queries, variables, *, scalar=False):
    names = [q["spec"]["name"] for q in queries]
    if len(set(names)) != len(names):
        mistake(where, "two queries of one name")
    if all(q["spec"].get("disabled") for q in queries):
        mistake(where, "every query is disabled")
    for query in queries:
        if query["type"] == "builder_formula":
            for letter in re.findall(r"\b[A-Z]\d*\b", query["spec"]["expression"]):
                if letter not in names:
                    mistake(where, f"the formula names {letter}, which is no query")
        else:
            check_builder(f"{where} {query['spec']['name']}", query["spec"], variables, scalar=scalar)


def overlapping(boxes):
    return [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[i + 1:]
            if a[1] < b[1] + b[3] and b[1] < a[1] + a[3] and a[2] < b[2] + b[4] and b[2] < a[2] + a[4]]


def check_dashboard(path):
    where, data = path.name, json.loads(path.read_text())
    if data["schemaVersion"] != "v6" or ("name" in data) == bool(data.get("generateName")):
        mistake(where, "needs schemaVersion v6 and either a name or generateName")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", data.get("name", "a")):
        mistake(where, "the name is not a DNS label")
    if len(data["tags"]) > 10 or len({t["key"] for t in data["tags"]}) != len(data["tags"]):
        mistake(where, "over ten tags, or one twice")
    for tag in data["tags"]:
        if not TAG_KEY.match(tag["key"]) or not TAG_VALUE.match(tag["value"]) or tag["key"] in RESERVED:
            mistake(where, f"tag {tag}")
    spec = data["spec"]
    if len(spec["display"]["name"]) > 128:
        mistake(where, "the title is too long")
    variables = set()
    for variable in spec["variables"]:
        source = variable["spec"]["plugin"]["spec"]
        variables.add(variable["spec"]["name"])
        known = NAMES["span_attributes"] + NAMES["resource_attributes"] if source["signal"] == "traces" else [
            label for m in METRICS.values() for label in m["labels"]]
        if source["name"] not in known:
            mistake(where, f"variable of unknown attribute {source['name']}")
    for name in variables:
        if f"${name}" not in json.dumps(spec["panels"]):
            mistake(where, f"variable {name} chooses nothing")
    for name, panel in spec["panels"].items():
        at = f"{where} {name}"
        kind = panel["spec"]["plugin"]["kind"].removeprefix("signoz/")
        if len(panel["spec"]["queries"]) != 1:
            mistake(at, "needs exactly one query")
            continue
        query = panel["spec"]["queries"][0]
        plugin = query["spec"]["plugin"]
        requests, kinds = PANELS[kind]
        if query["kind"] not in requests or plugin["kind"].removeprefix("signoz/") not in kinds:
            mistake(at, f"a {kind} cannot draw {query['kind']} of {plugin['kind']}")
        scalar, raw = query["kind"] == "scalar", query["kind"] == "raw"
        if plugin["kind"] == "signoz/CompositeQuery":
            check_composite(at, plugin["spec"]["queries"], variables, scalar=scalar)
        else:
            check_builder(at, plugin["spec"], variables, scalar=scalar, raw=raw)
        for field in panel["spec"]["plugin"]["spec"].get("selectFields", []):
            if field["name"] not in NAMES["span_attributes"] + NAMES["resource_attributes"] + NAMES["span_fields"]:
                mistake(at, f"no field {field['name']}")
    placed = []
    for layout in spec["layouts"]:
        boxes = []
        for item in layout["spec"]["items"]:
            name = item["content"]["$ref"].removeprefix("#/spec/panels/")
            placed.append(name)
            boxes.append((name, item["x"], item["y"], item["width"], item["height"]))
            if item["x"] < 0 or item["y"] < 0 or item["width"] < 1 or item["x"] + item["width"] > 12:
                mistake(where, f"{name} leaves the twelve columns")
        for pair in overlapping(boxes):
            mistake(where, f"{pair[0]} and {pair[1]} overlap")
    if sorted(placed) != sorted(spec["panels"]):
        mistake(where, f"not placed exactly once: {sorted(set(placed) ^ set(spec['panels'])) or 'one twice'}")


def check_rule(path):
    where, data = path.name, json.loads(path.read_text())
    if data["version"] != "v5" or data["schemaVersion"] != "v2alpha1" or data["ruleType"] != "threshold_rule":
        mistake(where, "is not a threshold rule of v2alpha1")
    condition = data["condition"]
    queries = condition["compositeQuery"]["queries"]
    check_composite(where, queries, set())
    selected = [q["spec"] for q in queries if q["spec"]["name"] == condition["selectedQueryName"]]
    if len(selected) != 1 or selected[0].get("disabled"):
        mistake(where, "the selected query is missing or disabled")
    signals = {q["spec"]["signal"] for q in queries if "signal" in q["spec"]}
    if signals != {"traces" if data["alertType"] == "TRACES_BASED_ALERT" else "metrics"}:
        mistake(where, f"{data['alertType']} over {signals}")
    groups = [{k["name"] for k in q["spec"]["groupBy"]} for q in queries if "groupBy" in q["spec"]]
    for name in data["notificationSettings"]["groupBy"]:
        if any(name not in group for group in groups):
            mistake(where, f"notifies by {name}, which a query does not group by")
    if not data["notificationSettings"]["usePolicy"] or any(t["channels"] for t in condition["thresholds"]["spec"]):
        mistake(where, "names a channel, so it cannot be imported anywhere")
    for query in queries:
        for aggregation in query["spec"].get("aggregations", []):
            buckets = METRICS.get(base_metric(aggregation.get("metricName", "")) or "", {}).get("buckets")
            target = max(t["target"] for t in condition["thresholds"]["spec"])
            if buckets and aggregation["spaceAggregation"].startswith("p") and target >= buckets[-1]:
                mistake(where, f"can never fire: the top bucket is {buckets[-1]}")
    for text in data["annotations"].values():
        for label in re.findall(r"\{\{\$([\w.]+)\}\}", text):
            if label not in {"value", "threshold"} and any(label not in group for group in groups):
                mistake(where, f"the text names {label}, which a query does not group by")
    check_runbook(where, data["annotations"]["runbook_url"])


# ---- Documentation, Grafana, Prometheus -------------------------------------------------------------------------

def anchors(markdown):
    return {re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            for line in markdown.splitlines() if line.startswith("#")}


def check_runbook(where, url):
    page, _, anchor = url.partition("#")
    target = ROOT / page
    if not target.exists() or anchor not in anchors(target.read_text()):
        mistake(where, f"the runbook {url} does not exist")


def check_grafana(path):
    where, data = path.name, json.loads(path.read_text())
    if data["id"] is not None or not data["uid"] or not 39 <= data["schemaVersion"] <= 41:
        mistake(where, "needs id null, a fixed uid and schemaVersion 39 to 41")
    if "__inputs" in data or "__requires" in data:
        mistake(where, "__inputs breaks provisioning from files")
    variables = {v["name"]: v for v in data["templating"]["list"]}
    if variables.get("DS_PROMETHEUS", {}).get("type") != "datasource":
        mistake(where, "no data source variable")
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    for name, variable in variables.items():
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            if variable["datasource"] != source or not asked:
                mistake(where, f"variable {name}")
            elif asked[2] not in labels_of(asked[1]) | TARGET_LABELS:
                mistake(where, f"{asked[1]} has no label {asked[2]}")
    ids = [p["id"] for p in data["panels"]]
    if len(set(ids)) != len(ids):
        mistake(where, "two panels of one id")
    boxes, expressions = [], []
    for panel in data["panels"]:
        grid = panel["gridPos"]
        boxes.append((panel["title"], grid["x"], grid["y"], grid["w"], grid["h"]))
        if grid["x"] + grid["w"] > 24:
            mistake(where, f"{panel['title']} leaves the 24 columns")
        if panel["type"] == "row":
            continue
        if panel["datasource"] != source or any(t["datasource"] != source for t in panel["targets"]):
            mistake(where, f"{panel['title']} does not use the data source variable")
        for target in panel["targets"]:
            at = f"{where} {panel['title']}"
            for name in re.findall(r"\$(?!__)(\w+)", target["expr"]):
                if name not in variables:
                    mistake(at, f"no variable ${name}")
            check_promql(at, target["expr"])
            expressions.append(target["expr"])
            if panel["type"] != "table":
                grouped = [g.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for g in group.split(",")]
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    if label not in grouped:
                        mistake(at, f"the legend names {label}")
    for pair in overlapping(boxes):
        mistake(where, f"{pair[0]} and {pair[1]} overlap")
    return expressions


def check_prometheus(path):
    """Reads the few shapes that our rule files use; promtool is the judge of the YAML itself."""
    text = path.read_text()
    names = re.findall(r"^ *- (?:alert|record): (\S+)$", text, re.M)
    rules = re.split(r"^ *- (?:alert|record): \S+$", text, flags=re.M)[1:]
    tests = "".join(t.read_text() for t in (HERE / "prometheus/tests").glob("*.yaml"))
    for name, body in zip(names, rules):
        where = f"{path.name} {name}"
        lines = iter(body.splitlines())
        expression = ""
        for line in lines:
            match = re.match(r"^( *)expr: (.*)$", line)
            if match and match[2] != "|":
                expression = match[2]
            elif match:
                for more in lines:
                    if more.strip() and len(more) - len(more.lstrip()) <= len(match[1]):
                        break
                    expression += more + "\n"
        check_promql(where, expression)
        if ":" in name:
            continue
        for url in re.findall(r"runbook_url: (\S+)", body) or [mistake(where, "no runbook")]:
            if url:
                check_runbook(where, url)
        cases = re.findall(rf"alertname: {name}\n *exp_alerts:(.*)", tests)
        if not any(c.strip() == "[]" for c in cases):
            mistake(where, "no test in which it stays silent")
        if not any(c.strip() == "" for c in cases):
            mistake(where, "no test in which it fires")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        mistake(" ".join(map(str, command[:3])), done.stdout + done.stderr)


def main():
    run(sys.executable, HERE / "build.py", "--check")
    dashboards = sorted((HERE / "signoz").glob("*.json"))
    rules = sorted((HERE / "signoz/rules").glob("*.json"))
    prometheus = sorted((HERE / "prometheus").glob("*.yaml"))
    for path in dashboards:
        check_dashboard(path)
    for path in rules:
        check_rule(path)
    expressions = [e for path in (HERE / "grafana").glob("*.json") for e in check_grafana(path)]
    for path in prometheus:
        check_prometheus(path)

    promtool = shutil.which("promtool")
    if promtool:
        run(promtool, "check", "rules", *prometheus)
        run(promtool, "test", "rules", *sorted((HERE / "prometheus/tests").glob("*.yaml")))
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            plain = [re.sub(r"\$__rate_interval|\$__range", "5m", e) for e in expressions]
            json.dump({"groups": [{"name": "grafana", "rules": [
                {"record": f"query:{i}", "expr": e} for i, e in enumerate(plain)]}]}, file)
            file.flush()
            run(promtool, "check", "rules", file.name)
    elif "--need-promtool" in sys.argv:
        mistake("promtool", "is not installed")
    validate = os.environ.get("SIGNOZ_VALIDATE")
    if validate:
        run(validate, "dashboard", *dashboards)
        run(validate, "rule", *rules)

    for line in mistakes:
        print(line, file=sys.stderr)
    print(f"{len(dashboards)} SigNoz dashboards, {len(rules)} SigNoz rules, {len(expressions)} Grafana queries, "
          f"{len(prometheus)} Prometheus files: {len(mistakes)} mistakes"
          + ("" if promtool else "; promtool is not here") + ("" if validate else "; SIGNOZ_VALIDATE is not set"))
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
