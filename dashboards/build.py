#!/usr/bin/env python3
"""Writes the SigNoz and Grafana files of this folder; with --check only says whether they are up to date.

The JSON files are what users import; they are long and repeat themselves, so they are made here from one description
per panel. After a change: run this, then check.py. Python's standard library is all it needs.
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
RUNBOOK = "docs/dashboards.md#"

# ---- Which spans are meant --------------------------------------------------------------------------------------
# SigNoz refuses a query that names an attribute it has never seen, so the filters keep to attributes that every
# executor sends, although spanledger itself accepts more spellings.

# The inner span of a routed run is the same run again; spanledger does not count it either.
EXECUTION = "code.runtime EXISTS AND NOT (workflow.id = 'runtime-router' AND node.id = 'code-execution')"
# A run that threw leaves the status unset and never gets to say whether it succeeded.
FAILED = "(has_error = true OR code.success = false OR (status_code = 0 AND code.success NOT EXISTS))"
CHOSEN = "code.runtime IN $runtime AND code.language IN $language AND service.name IN $service"
TOOL = "tool_id EXISTS AND tool_id IN $tool"


def key(name, kind="string", context="attribute"):
    return {"name": name, "fieldContext": context, "fieldDataType": kind}


def builder(name, signal, aggregations, where="", by=(), *, step=60, having="", legend="", limit=None, order=(),
            disabled=False):
    spec = {
        "name": name, "signal": signal, "source": "", "stepInterval": step, "disabled": disabled,
        "aggregations": aggregations, "filter": {"expression": where},
        "groupBy": [key(k) if isinstance(k, str) else k for k in by],
        "order": [{"key": {"name": k}, "direction": d} for k, d in order],
        "having": {"expression": having}, "legend": legend,
    }
    if limit:
        spec["limit"] = limit
    return spec


def spans(name, expression, where, by=(), *, alias=None, **more):
    aggregation = {"expression": expression} | ({"alias": alias} if alias else {})
    return builder(name, "traces", [aggregation], where, by, **more)


def metric(name, metric_name, how, where="", by=(), *, reduce="avg", **more):
    """`how` is rate, increase, or a percentile of a histogram's buckets."""
    percentile = how.startswith("p")
    aggregation = {
        "metricName": metric_name + (".bucket" if percentile else ""), "temporality": "",
        "timeAggregation": "" if percentile else how, "spaceAggregation": how if percentile else "sum",
        "reduceTo": reduce,
    }
    return builder(name, "metrics", [aggregation], where, by, **more)


def formula(name, expression, legend=""):
    return {"name": name, "expression": expression, "disabled": False, "having": {"expression": ""}, "legend": legend}


def envelope(spec):
    return {"type": "builder_formula" if "expression" in spec else "builder_query", "spec": spec}


def hidden(*specs):
    return [spec | {"disabled": True} for spec in specs]


# ---- SigNoz panels ----------------------------------------------------------------------------------------------

def panel(kind, title, description, queries, request, **spec):
    if len(queries) == 1:
        query = {"kind": "signoz/BuilderQuery", "spec": queries[0]}
    else:
        query = {"kind": "signoz/CompositeQuery", "spec": {"queries": [envelope(q) for q in queries]}}
    return {"kind": "Panel", "spec": {
        "display": {"name": title, "description": description}, "plugin": {"kind": "signoz/" + kind, "spec": spec},
        "queries": [{"kind": request, "spec": {"plugin": query}}], "links": []}}


GLOBAL = {"timePreference": "global_time"}


def number(title, description, queries, unit="none", decimals="2", red_above=None):
    thresholds = [] if red_above is None else [
        {"value": red_above, "operator": "above", "unit": unit, "color": "Red", "format": "text"}]
    return panel("NumberPanel", title, description, queries, "scalar", visualization=GLOBAL,
                 formatting={"unit": unit, "decimalPrecision": decimals}, thresholds=thresholds)


def lines(title, description, queries, unit="none", thresholds=()):
    return panel("TimeSeriesPanel", title, description, queries, "time_series",
                 visualization=GLOBAL | {"fillSpans": False}, formatting={"unit": unit, "decimalPrecision": "2"},
                 chartAppearance={"lineInterpolation": "linear", "showPoints": False, "lineStyle": "solid",
                                  "fillMode": "none", "spanGaps": {"fillOnlyBelow": True, "fillLessThan": "10m"}},
                 axes={"softMin": 0, "softMax": None, "isLogScale": False},
                 legend={"position": "bottom", "mode": "list"}, thresholds=list(thresholds))


def bars(title, description, queries, unit="none"):
    return panel("BarChartPanel", title, description, queries, "time_series",
                 visualization=GLOBAL | {"fillSpans": False, "stackedBarChart": True},
                 formatting={"unit": unit, "decimalPrecision": "2"},
                 axes={"softMin": 0, "softMax": None, "isLogScale": False},
                 legend={"position": "bottom", "mode": "list"}, thresholds=[])


def pie(title, description, queries, unit="none"):
    return panel("PieChartPanel", title, description, queries, "scalar", visualization=GLOBAL,
                 formatting={"unit": unit, "decimalPrecision": "2"}, legend={"position": "right", "mode": "list"})


def table(title, description, queries, units=None):
    return panel("TablePanel", title, description, queries, "scalar", visualization=GLOBAL,
                 formatting={"columnUnits": units or {}, "decimalPrecision": "2"}, thresholds=[])


def listing(title, description, query, fields):
    return panel("ListPanel", title, description, [query], "raw",
                 selectFields=[{"name": n, "signal": "traces", "fieldContext": c, "fieldDataType": t}
                               for n, c, t in fields])


def variable(name, attribute, signal):
    return {"kind": "ListVariable", "spec": {
        "name": name, "display": {"name": name, "description": ""}, "allowAllValue": True, "allowMultiple": True,
        "customAllValue": "", "capturingRegexp": "", "sort": "alphabetical-asc",
        "plugin": {"kind": "signoz/DynamicVariable", "spec": {"name": attribute, "signal": signal}}}}


def dashboard(name, title, description, signal, variables, sections):
    """A section is a title and rows; a row is a height and (key, width, panel) whose widths add up to 12."""
    panels, layouts = {}, []
    for heading, rows in sections:
        items, y = [], 0
        for height, cells in rows:
            x = 0
            for name_of_panel, width, content in cells:
                assert name_of_panel not in panels, name_of_panel
                panels[name_of_panel] = content
                items.append({"x": x, "y": y, "width": width, "height": height,
                              "content": {"$ref": "#/spec/panels/" + name_of_panel}})
                x += width
            y += height
        layouts.append({"kind": "Grid", "spec": {"display": {"title": heading, "collapse": {"open": True}},
                                                 "items": items}})
    return {
        "schemaVersion": "v6", "image": "", "name": name,
        "tags": [{"key": "technology", "value": "code-execution"}, {"key": "signal", "value": signal}],
        "spec": {"display": {"name": title, "description": description}, "duration": "", "refreshInterval": "",
                 "links": [], "variables": variables, "panels": panels, "layouts": layouts}}


def share(part, whole, legend):
    return hidden(part, whole) + [formula("F1", "A / B * 100", legend)]


def from_traces():
    chosen = f"{EXECUTION} AND {CHOSEN}"
    failed = f"{chosen} AND {FAILED}"
    timed_out = f"{chosen} AND (status_message CONTAINS 'timed out' OR error.type CONTAINS 'timeout')"
    llm = "name = 'llm.generate'"

    def percentiles(where):
        return [spans(n, f"p{p}(duration_nano)", where, legend=f"p{p}") for n, p in (("A", 50), ("B", 95), ("C", 99))]

    row_fields = [("code.runtime", "attribute", "string"), ("code.language", "attribute", "string"),
                  ("duration_nano", "span", "number"), ("status_message", "span", "string"),
                  ("workflow.execution_id", "attribute", "string"), ("node.id", "attribute", "string"),
                  ("service.name", "resource", "string")]
    newest = [("timestamp", "desc")]
    sections = [
        ("Code executions", [
            (3, [
                ("executions", 2, number("Executions", "Runs in the chosen time.", [spans("A", "count()", chosen)],
                                         decimals="0")),
                ("error-share", 2, number("Failed", "Share of runs that failed.", share(
                    spans("A", "count()", failed), spans("B", "count()", chosen), "failed"), "percent", red_above=10)),
                ("time-outs", 2, number("Time-outs", "Runs that were cut off.", [spans("A", "count()", timed_out)],
                                        decimals="0")),
                ("median", 2, number("Median", "Half of the runs are quicker.",
                                     [spans("A", "p50(duration_nano)", chosen)], "ns")),
                ("p95", 2, number("95th percentile", "One run in twenty takes longer.",
                                  [spans("A", "p95(duration_nano)", chosen)], "ns")),
                ("workflows", 2, number("Workflow runs", "Distinct workflow executions that ran code.",
                                        [spans("A", "count_distinct(workflow.execution_id)", chosen)], decimals="0")),
            ]),
            (6, [
                ("by-result", 6, bars("Executions", "Succeeded and failed runs.", [
                    spans("A", "count()", failed, legend="failed"),
                    spans("B", "count()", f"{chosen} AND NOT {FAILED}", legend="succeeded")])),
                ("duration", 6, lines("Duration", "Of the whole run, validation included.", percentiles(chosen), "ns")),
            ]),
            (6, [
                ("errors-by-runtime", 6, lines("Failed by runtime", "Share of the runs of each runtime.", share(
                    spans("A", "count()", failed, ["code.runtime"]), spans("B", "count()", chosen, ["code.runtime"]),
                    "{{code.runtime}}"), "percent", [{"value": 10, "unit": "percent", "color": "Red", "label": "alert"}])),
                ("p95-by-runtime", 6, lines("95th percentile by runtime", "", [
                    spans("A", "p95(duration_nano)", chosen, ["code.runtime"], legend="{{code.runtime}}")], "ns")),
            ]),
            (6, [
                ("languages", 4, pie("Languages", "", [spans("A", "count()", chosen, ["code.language"],
                                                             legend="{{code.language}}")])),
                ("by-service", 8, table("By service and runtime", "", [
                    spans("A", "count()", chosen, [key("service.name", context="resource"), "code.runtime"],
                          alias="executions", order=[("executions", "desc")], limit=50)])),
            ]),
            (7, [("failures", 12, listing(
                "Latest failures", "Open one to see its trace.",
                builder("A", "traces", [], failed, order=newest, limit=50), row_fields))]),
        ]),
        ("Tools", [
            (6, [
                ("tool-p95", 6, lines("95th percentile by tool", "", [
                    spans("A", "p95(duration_nano)", TOOL, ["tool_id"], legend="{{tool_id}}")], "ns")),
                ("tool-errors", 6, bars("Errors by kind", "Where the tool failed.", [
                    spans("A", "count()", f"{TOOL} AND error_kind EXISTS", ["error_kind"], legend="{{error_kind}}")])),
            ]),
            (6, [
                ("tool-time-outs", 6, lines("Time-outs by tool", "Share of the tool's runs that timed out.", share(
                    spans("A", "count()", f"{TOOL} AND error_kind = 'timeout'", ["tool_id"]),
                    spans("B", "count()", TOOL, ["tool_id"]), "{{tool_id}}"), "percent")),
                ("tool-exits", 6, table("Exit codes", "How the tools' processes ended.", [
                    spans("A", "count()", f"{TOOL} AND exit_code EXISTS", ["tool_id", key("exit_code", "float64")],
                          alias="exits", order=[("exits", "desc")], limit=50)])),
            ]),
        ]),
        ("Workflows and nodes", [
            (6, [
                ("nodes-by-status", 6, bars("Nodes by status", "", [
                    spans("A", "count()", "node.status EXISTS", ["node.status"], legend="{{node.status}}")])),
                ("node-p95", 6, lines("95th percentile by node type", "", [
                    spans("A", "p95(duration_nano)", "node.status EXISTS", ["node.type"], legend="{{node.type}}",
                          limit=20)], "ns")),
            ]),
            (7, [("node-failures", 12, listing(
                "Latest failed nodes", "The node's span has the error text that the code's span lacks.",
                builder("A", "traces", [], "node.status = 'failed'", order=newest, limit=50),
                [("node.type", "attribute", "string"), ("node.error", "attribute", "string"),
                 ("organization.id", "attribute", "string"), ("workflow.execution_id", "attribute", "string"),
                 ("node.id", "attribute", "string"), ("duration_nano", "span", "number")]))]),
        ]),
        ("Language models", [
            (6, [
                ("llm-cost", 3, number("Estimated cost", "As the spans say, in US dollars.",
                                       [spans("A", "sum(llm.cost_usd)", llm)], "currencyUSD")),
                ("llm-cost-by-model", 5, bars("Estimated cost by model", "", [
                    spans("A", "sum(llm.cost_usd)", llm, ["llm.model"], legend="{{llm.model}}")], "currencyUSD")),
                ("llm-p95", 4, lines("95th percentile by model", "", [
                    spans("A", "p95(duration_nano)", llm, ["llm.model"], legend="{{llm.model}}")], "ns")),
            ]),
            (6, [
                ("llm-tokens", 6, bars("Tokens", "", [
                    spans("A", "sum(llm.input_tokens)", llm, legend="input"),
                    spans("B", "sum(llm.output_tokens)", llm, legend="output")])),
                ("llm-models", 6, table("Models", "", [
                    spans("A", "count()", llm, ["llm.provider", "llm.model"], alias="requests",
                          order=[("requests", "desc")], limit=50)])),
            ]),
        ]),
    ]
    return dashboard(
        "spanledger-traces", "Code executions (traces)",
        "What the executors did, from the forwarded traces alone. Nothing else has to be set up.", "traces",
        [variable("runtime", "code.runtime", "traces"), variable("language", "code.language", "traces"),
         variable("service", "service.name", "traces"), variable("tool", "tool_id", "traces")], sections)


def from_metrics():
    code = "runtime IN $runtime AND language IN $language"
    code_failed = f"{code} AND outcome != 'success'"
    tool = "tool_id IN $tool"

    def percentiles(name, where):
        return [metric(n, name, f"p{p}", where, legend=f"p{p}") for n, p in (("A", 50), ("B", 95), ("C", 99))]

    def counted(name, where="", by=(), **more):
        return metric("A", name, "increase", where, by, reduce="sum", **more)

    def part_of(name, part, whole, by=(), legend="", whole_name=None):
        return share(metric("A", name, "increase", part, by, reduce="sum"),
                     metric("B", whole_name or name, "increase", whole, by, reduce="sum"), legend)

    sections = [
        ("Code executions", [
            (3, [
                ("executions", 2, number("Executions", "", [counted("code_executions_total", code)], decimals="0")),
                ("error-share", 2, number("Failed", "Share of runs that failed or timed out.", part_of(
                    "code_executions_total", code_failed, code, legend="failed"), "percent", red_above=10)),
                ("time-outs", 2, number("Time-outs", "", [
                    counted("code_executions_total", f"{code} AND outcome = 'timeout'")], decimals="0")),
                ("p95", 2, number("95th percentile", "", [metric("A", "code_duration_ms", "p95", code)], "ms")),
                ("p99", 2, number("99th percentile", "", [metric("A", "code_duration_ms", "p99", code)], "ms")),
                ("tokens", 2, number("Tokens", "Used to write the code that ran.",
                                     [counted("code_tokens_used_total", code)], decimals="0")),
            ]),
            (6, [
                ("by-outcome", 6, bars("Executions by outcome", "", [
                    counted("code_executions_total", code, ["outcome"], legend="{{outcome}}")])),
                ("duration", 6, lines("Duration", "", percentiles("code_duration_ms", code), "ms")),
            ]),
            (6, [
                ("errors-by-runtime", 6, lines("Failed by runtime", "", part_of(
                    "code_executions_total", code_failed, code, ["runtime"], "{{runtime}}"), "percent",
                    [{"value": 10, "unit": "percent", "color": "Red", "label": "alert"}])),
                ("p95-by-runtime", 6, lines("95th percentile by runtime", "", [
                    metric("A", "code_duration_ms", "p95", code, ["runtime"], legend="{{runtime}}")], "ms")),
            ]),
            (6, [
                ("memory", 4, lines("Memory", "95th percentile by runtime, megabytes.", [
                    metric("A", "code_memory_mb", "p95", code, ["runtime"], legend="{{runtime}}")], "decmbytes")),
                ("languages", 4, pie("Languages", "", [
                    counted("code_executions_total", code, ["language"], legend="{{language}}")])),
                ("exit-codes", 4, table("Exit codes", "", [
                    counted("code_exit_code_total", code, ["runtime", "exit_code"])])),
            ]),
            (6, [
                ("code-cost", 4, number("Estimated cost of executions", "US dollars, where spans or prices say it.", [
                    counted("code_cost_usd_total", "runtime IN $runtime")], "currencyUSD")),
                ("code-cost-by-runtime", 8, bars("Estimated cost by runtime", "", [
                    counted("code_cost_usd_total", "runtime IN $runtime", ["runtime"], legend="{{runtime}}")],
                    "currencyUSD")),
            ]),
            (6, [
                ("e2b", 4, bars("E2B by outcome", "", [
                    counted("e2b_executions_total", "", ["outcome"], legend="{{outcome}}")])),
                ("wasmedge", 4, bars("WasmEdge by outcome", "", [
                    counted("wasmedge_executions_total", "", ["outcome"], legend="{{outcome}}")])),
                ("bacalhau", 4, bars("Bacalhau by outcome", "", [
                    counted("bacalhau_executions_total", "", ["outcome"], legend="{{outcome}}")])),
            ]),
        ]),
        ("Tools", [
            (6, [
                ("tool-p95", 6, lines("95th percentile by tool", "At most 30 s, the top of the buckets.", [
                    metric("A", "runtime_tool_execute_seconds", "p95", tool, ["tool_id"], legend="{{tool_id}}")], "s")),
                ("tool-errors", 6, bars("Errors by kind", "", [
                    counted("runtime_tool_errors_total", tool, ["error_kind"], legend="{{error_kind}}")])),
            ]),
            (6, [
                ("tool-time-outs", 4, lines("Time-outs by tool", "Share of the tool's runs.", part_of(
                    "runtime_tool_timeouts_total", tool, tool, ["tool_id"], "{{tool_id}}",
                    "runtime_tool_execute_seconds.count"), "percent")),
                ("tool-exits", 4, table("Process exits", "", [
                    counted("runtime_bun_process_exits_total", "", ["status", "code", "signal"])])),
                ("tool-output", 4, lines("Output size", "99th percentile by tool.", [
                    metric("A", "runtime_tool_output_bytes", "p99", tool, ["tool_id"], legend="{{tool_id}}")], "bytes")),
            ]),
        ]),
        ("Workflows, nodes, agents", [
            (6, [
                ("workflows", 4, bars("Workflows by status", "", [
                    counted("workflow_executions_total", "", ["status"], legend="{{status}}")])),
                ("workflow-p95", 4, lines("Workflow duration", "95th percentile.", [
                    metric("A", "workflow_duration_seconds", "p95", legend="p95")], "s")),
                ("node-p95", 4, lines("95th percentile by node type", "", [
                    metric("A", "node_latency_ms", "p95", "", ["node_type"], legend="{{node_type}}")], "ms")),
            ]),
            (6, [
                ("nodes", 4, bars("Nodes by status", "", [
                    counted("node_executions_total", "", ["status"], legend="{{status}}")])),
                ("agents", 4, bars("Agents by framework", "", [
                    counted("agent_executions_total", "", ["framework", "status"],
                            legend="{{framework}} {{status}}")])),
                ("connectors", 4, bars("Connectors", "", [
                    counted("connector_requests_total", "", ["connector", "status"],
                            legend="{{connector}} {{status}}")])),
            ]),
        ]),
        ("Language models", [
            (6, [
                ("llm-cost", 3, number("Estimated cost", "US dollars, as the spans say.",
                                       [counted("llm_cost_usd_total")], "currencyUSD")),
                ("llm-cost-by-model", 5, bars("Estimated cost by model", "", [
                    counted("llm_cost_usd_total", "", ["model"], legend="{{model}}")], "currencyUSD")),
                ("llm-p95", 4, lines("95th percentile by model", "", [
                    metric("A", "llm_latency_ms", "p95", "", ["model"], legend="{{model}}")], "ms")),
            ]),
            (6, [
                ("llm-tokens", 6, bars("Tokens", "", [
                    counted("llm_tokens_total", "", ["direction"], legend="{{direction}}")])),
                ("llm-requests", 6, bars("Requests by status", "", [
                    counted("llm_requests_total", "", ["provider", "status"], legend="{{provider}} {{status}}")])),
            ]),
        ]),
    ]
    return dashboard(
        "spanledger-metrics", "Code executions (metrics)",
        "What the executors did, from spanledger's metrics scraped into SigNoz: exact however the traces are sampled.",
        "metrics",
        [variable("runtime", "runtime", "metrics"), variable("language", "language", "metrics"),
         variable("tool", "tool_id", "metrics")], sections)


# ---- SigNoz alert rules -----------------------------------------------------------------------------------------

def rule(title, signal, queries, selected, thresholds, window, frequency, anchor, summary, description, *, unit="",
         group=(), severity="warning", absent_minutes=None, daily=False):
    condition = {
        "compositeQuery": {"queryType": "builder", "panelType": "graph", "unit": unit,
                           "queries": [envelope(q) for q in queries]},
        "selectedQueryName": selected, "thresholds": {"kind": "basic", "spec": thresholds},
    }
    if absent_minutes:
        condition |= {"alertOnAbsent": True, "absentFor": absent_minutes}
    evaluation = {"kind": "rolling", "spec": {"evalWindow": window, "frequency": frequency}}
    if daily:
        evaluation = {"kind": "cumulative", "spec": {
            "schedule": {"type": "daily", "hour": 0, "minute": 0}, "frequency": frequency, "timezone": "UTC"}}
    return {
        "alert": title, "alertType": "TRACES_BASED_ALERT" if signal == "traces" else "METRIC_BASED_ALERT",
        "ruleType": "threshold_rule", "version": "v5", "schemaVersion": "v2alpha1", "description": summary,
        "condition": condition, "evaluation": evaluation,
        # Without channels and by policy a file can be imported anywhere: a named channel must exist.
        "notificationSettings": {"groupBy": list(group), "usePolicy": True, "renotify": {
            "enabled": True, "interval": "4h", "alertStates": ["firing"]}},
        "labels": {"severity": severity, "service": "spanledger"},
        "annotations": {"summary": summary, "description": description, "runbook_url": RUNBOOK + anchor},
        "disabled": False,
    }


def above(target, match="all_the_times", name="warning", op="above", unit=""):
    return [{"name": name, "op": op, "matchType": match, "target": target, "targetUnit": unit, "recoveryTarget": None,
             "channels": []}]


def rules():
    # A share of few runs says nothing: intervals of five minutes with fewer are left out of the denominator, and
    # SigNoz drops what is then divided by zero.
    step, enough = 300, 10

    def trace_share(part, whole, by):
        return hidden(spans("A", "count()", part, [by], step=step),
                      spans("B", "count()", whole, [by], step=step, having=f"count() >= {enough}")) + [
            formula("F1", "A / B * 100", "{{" + by + "}}")]

    def metric_share(part_name, part, whole_name, whole, by, expression="A / B * 100"):
        return hidden(metric("A", part_name, "increase", part, [by], step=step),
                      metric("B", whole_name, "increase", whole, [by], step=step, having=f"__result >= {enough}")) + [
            formula("F1", expression, "{{" + by + "}}")]

    tool = "tool_id EXISTS"
    failing = "{{$%s}}: {{$value}} %% of runs failed (threshold {{$threshold}} %%)."
    cut_off = "{{$tool_id}}: {{$value}} % of runs timed out (threshold {{$threshold}} %)."
    both = {}

    both["error-rate-by-runtime"] = [
        rule(f"Code executions fail ({s})", s, q, "F1", above(10), "15m", "1m", "codeexecutionerrorratehigh",
             "More than a tenth of a runtime's executions fail.", failing % g, unit="percent", group=[g])
        for s, g, q in (
            ("traces", "code.runtime", trace_share(f"{EXECUTION} AND {FAILED}", EXECUTION, "code.runtime")),
            ("metrics", "runtime", metric_share("code_executions_total", "outcome != 'success'",
                                                "code_executions_total", "", "runtime")))]
    both["tool-error-rate"] = [
        rule(f"Runtime tool fails ({s})", s, q, "F1", above(10), "15m", "1m", "runtimetoolerrorratehigh",
             "More than a tenth of a tool's runs fail.", failing % "tool_id", unit="percent", group=["tool_id"])
        for s, q in (
            ("traces", trace_share(f"{tool} AND has_error = true", tool, "tool_id")),
            ("metrics", metric_share("runtime_tool_execute_seconds.count", "outcome != 'success'",
                                     "runtime_tool_execute_seconds.count", "", "tool_id")))]
    both["tool-time-out-spike"] = [
        rule(f"Runtime tool times out ({s})", s, q, "F1", above(5), "15m", "1m", "runtimetooltimeoutspike",
             "More than one in twenty runs of a tool time out.", cut_off, unit="percent", group=["tool_id"])
        for s, q in (
            ("traces", trace_share(f"{tool} AND error_kind = 'timeout'", tool, "tool_id")),
            ("metrics", metric_share("runtime_tool_timeouts_total", "", "runtime_tool_execute_seconds.count", "",
                                     "tool_id")))]
    both["slow-tools"] = [
        rule("Runtime tool is slow (traces)", "traces",
             [spans("A", "p95(duration_nano)", tool, ["tool_id"], step=step, legend="{{tool_id}}")],
             "A", above(30, unit="s"), "15m", "1m", "runtimetoolslow", "One run in twenty of a tool takes over 30 s.",
             "{{$tool_id}}: 95th percentile {{$value}} (threshold {{$threshold}}).", unit="ns", group=["tool_id"]),
        # A percentile of the buckets is never above 30 s, their top: ask how many runs are beyond it.
        rule("Runtime tool is slow (metrics)", "metrics",
             metric_share("runtime_tool_execute_seconds.bucket", "le IN ('30', '30.0')",
                          "runtime_tool_execute_seconds.count", "", "tool_id", "(1 - A / B) * 100"),
             "F1", above(5), "15m", "1m", "runtimetoolslow", "One run in twenty of a tool takes over 30 s.",
             "{{$tool_id}}: {{$value}} % of runs take over 30 s.", unit="percent", group=["tool_id"])]
    both["slow-workflows"] = [
        rule(f"Workflows are slow ({s})", s, q, "A", above(300, unit="s"), "30m", "5m", "workflowslow",
             "One workflow in twenty takes over five minutes.",
             "95th percentile {{$value}} (threshold {{$threshold}}).", unit=u)
        for s, u, q in (
            ("traces", "ns", [spans("A", "p95(duration_nano)", "name = 'workflow.execute'", step=step)]),
            ("metrics", "s", [metric("A", "workflow_duration_seconds", "p95", step=step)]))]
    both["llm-cost-per-day"] = [
        rule(f"Language models cost much today ({s})", s, q, "A", above(50, "in_total"), "", "15m", "llmcostperdayhigh",
             "The estimated cost of language models since midnight UTC is above 50 US dollars.",
             "{{$value}} US dollars today (threshold {{$threshold}}).", daily=True)
        for s, q in (
            ("traces", [spans("A", "sum(llm.cost_usd)", "name = 'llm.generate'", step=step)]),
            ("metrics", [metric("A", "llm_cost_usd_total", "increase", step=step)]))]
    both["no-executions"] = [
        rule(f"No code executions ({s})", s, q, "A", above(1, "in_total", "critical", "below"), "1h", "5m",
             "codeexecutionsabsent", "No code has run for an hour.",
             "Executors are idle, or their spans no longer arrive.", severity="critical", absent_minutes=60)
        for s, q in (
            ("traces", [spans("A", "count()", EXECUTION, step=step)]),
            ("metrics", [metric("A", "code_executions_total", "increase", step=step)]))]
    # Prices are spanledger's, so that only its metrics have this cost.
    yield "code-cost-per-day.metrics.json", rule(
        "Code executions cost much today (metrics)", "metrics", [metric("A", "code_cost_usd_total", "increase", step=step)],
        "A", above(50, "in_total"), "", "15m", "codecostperdayhigh",
        "The estimated cost of code executions since midnight UTC is above 50 US dollars.",
        "{{$value}} US dollars today (threshold {{$threshold}}).", daily=True)
    for name, (traces, metrics) in both.items():
        yield f"{name}.traces.json", traces
        yield f"{name}.metrics.json", metrics


# ---- Grafana ----------------------------------------------------------------------------------------------------

SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
CODE = '{job=~"$job",runtime=~"$runtime",language=~"$language"}'
TOOLS = '{job=~"$job",tool_id=~"$tool"}'
JOB = '{job=~"$job"}'
PRICED = '{job=~"$job",runtime=~"$runtime"}'


def targets(*pairs, instant=False):
    return [{"refId": chr(65 + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend,
             **({"instant": True, "range": False, "format": "table"} if instant else {})}
            for i, (expr, legend) in enumerate(pairs)]


def graf(kind, title, unit, *pairs, description="", stack=False, red_above=None, options=None):
    instant = kind in ("table", "stat", "piechart")
    custom = {"lineWidth": 1, "fillOpacity": 0, "showPoints": "never"}
    if stack:
        custom = {"drawStyle": "bars", "fillOpacity": 80, "lineWidth": 0, "stacking": {"mode": "normal", "group": "A"}}
    steps = [{"color": "green", "value": None}]
    if red_above is not None:
        steps.append({"color": "red", "value": red_above})
    defaults = {"unit": unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if kind == "timeseries":
        defaults["custom"] = custom
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {"type": kind, "title": title, "description": description, "datasource": SOURCE,
            "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options or {},
            "targets": targets(*pairs, instant=instant)}


def stat(title, unit, expr, red_above=None, description=""):
    made = graf("stat", title, unit, (expr, ""), red_above=red_above, description=description, options={
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value",
        "graphMode": "none"})
    made["targets"][0]["format"] = "time_series"
    return made


def quantile(q, name, selector, by=""):
    by = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({by}) (rate({name}_bucket{selector}[$__rate_interval])))"


def ratio(part, whole, by="", window="$__rate_interval"):
    by = f" by ({by})" if by else ""
    all_of_it = f"sum{by} (rate({whole}[{window}]))"
    # Before the first failure there is no series of failures; that is a share of nothing, not "no data".
    return f"(sum{by} (rate({part}[{window}])) or 0 * {all_of_it}) / ({all_of_it} > 0)"


def per(by, name, selector):
    return f"sum by ({by}) (increase({name}{selector}[$__rate_interval]))"


def narrowed(selector, more):
    return selector[:-1] + "," + more + "}"


def grafana():
    failed = "code_executions_total" + narrowed(CODE, 'outcome!="success"')
    sections = [
        ("Code executions", [
            (4, [
                (4, stat("Executions", "short", f"sum(increase(code_executions_total{CODE}[$__range]))")),
                (4, stat("Failed", "percentunit", ratio(failed, "code_executions_total" + CODE, window="$__range"), 0.1)),
                (4, stat("Time-outs", "short", "sum(increase(code_executions_total"
                         + narrowed(CODE, 'outcome="timeout"') + "[$__range])) or vector(0)")),
                (4, stat("95th percentile", "ms", "histogram_quantile(0.95, sum by (le) "
                         f"(rate(code_duration_ms_bucket{CODE}[$__range])))")),
                (4, stat("Tokens", "short", f"sum(increase(code_tokens_used_total{CODE}[$__range])) or vector(0)")),
                (4, stat("Estimated model cost", "currencyUSD",
                         f"sum(increase(llm_cost_usd_total{JOB}[$__range])) or vector(0)")),
            ]),
            (8, [
                (12, graf("timeseries", "Executions by outcome", "short",
                          (per("outcome", "code_executions_total", CODE), "{{outcome}}"), stack=True)),
                (12, graf("timeseries", "Duration", "ms", *((quantile(q, "code_duration_ms", CODE), l) for q, l in
                                                            ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))))),
            ]),
            (8, [
                (12, graf("timeseries", "Failed by runtime", "percentunit", (
                    ratio(failed, "code_executions_total" + CODE, "runtime"), "{{runtime}}"), red_above=0.1)),
                (12, graf("timeseries", "95th percentile by runtime", "ms",
                          (quantile(0.95, "code_duration_ms", CODE, "runtime"), "{{runtime}}"))),
            ]),
            (8, [
                (8, graf("timeseries", "Memory, 95th percentile by runtime", "decmbytes",
                         (quantile(0.95, "code_memory_mb", CODE, "runtime"), "{{runtime}}"))),
                (8, graf("piechart", "Languages", "short",
                         (f"sum by (language) (increase(code_executions_total{CODE}[$__range]))", "{{language}}"),
                         options={"legend": {"displayMode": "table", "placement": "right", "values": ["value"]},
                                  "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}})),
                (8, graf("table", "Exit codes", "short",
                         (f"sum by (runtime, exit_code) (increase(code_exit_code_total{CODE}[$__range])) > 0", ""))),
            ]),
            (8, [
                (6, stat("Estimated cost of executions", "currencyUSD",
                         f"sum(increase(code_cost_usd_total{PRICED}[$__range])) or vector(0)",
                         description="Where spans or `prices` say what an execution costs.")),
                (18, graf("timeseries", "Estimated cost by runtime", "currencyUSD",
                          (per("runtime", "code_cost_usd_total", PRICED), "{{runtime}}"), stack=True)),
            ]),
            (8, [
                (8, graf("timeseries", name, "short", (per("outcome", metric_name, JOB), "{{outcome}}"), stack=True))
                for name, metric_name in (("E2B", "e2b_executions_total"), ("WasmEdge", "wasmedge_executions_total"),
                                          ("Bacalhau", "bacalhau_executions_total"))]),
        ]),
        ("Tools", [
            (8, [
                (12, graf("timeseries", "95th percentile by tool", "s",
                          (quantile(0.95, "runtime_tool_execute_seconds", TOOLS, "tool_id"), "{{tool_id}}"),
                          description="At most 30 s, the top of the buckets; see the share beyond it.")),
                (12, graf("timeseries", "Errors by kind", "short",
                          (per("error_kind", "runtime_tool_errors_total", TOOLS), "{{error_kind}}"), stack=True)),
            ]),
            (8, [
                (8, graf("timeseries", "Time-outs by tool", "percentunit", (ratio(
                    "runtime_tool_timeouts_total" + TOOLS, "runtime_tool_execute_seconds_count" + TOOLS, "tool_id"),
                    "{{tool_id}}"), red_above=0.05)),
                (8, graf("timeseries", "Runs over 30 s by tool", "percentunit", (
                    "1 - " + ratio("runtime_tool_execute_seconds_bucket" + narrowed(TOOLS, 'le=~"30|30\\\\.0"'),
                                   "runtime_tool_execute_seconds_count" + TOOLS, "tool_id"), "{{tool_id}}"))),
                (8, graf("timeseries", "Output size, 99th percentile by tool", "bytes",
                         (quantile(0.99, "runtime_tool_output_bytes", TOOLS, "tool_id"), "{{tool_id}}"))),
            ]),
            (8, [(24, graf("timeseries", "Process exits", "short", (
                per("status, code, signal", "runtime_bun_process_exits_total", JOB),
                "{{status}} {{code}} {{signal}}"), stack=True))]),
        ]),
        ("Workflows, nodes, agents, connectors, retrieval", [
            (8, [
                (8, graf("timeseries", "Workflows by status", "short",
                         (per("status", "workflow_executions_total", JOB), "{{status}}"), stack=True)),
                (8, graf("timeseries", "Workflow duration", "s", *((quantile(q, "workflow_duration_seconds", JOB), l)
                                                                   for q, l in ((0.5, "p50"), (0.95, "p95"))))),
                (8, graf("timeseries", "95th percentile by node type", "ms",
                         (quantile(0.95, "node_latency_ms", JOB, "node_type"), "{{node_type}}"))),
            ]),
            (8, [
                (8, graf("timeseries", "Agents by status", "short",
                         (per("framework, status", "agent_executions_total", JOB), "{{framework}} {{status}}"),
                         stack=True)),
                (8, graf("timeseries", "Connectors by status", "short",
                         (per("connector, status", "connector_requests_total", JOB), "{{connector}} {{status}}"),
                         stack=True)),
                (8, graf("timeseries", "Retrieval, 95th percentile", "ms",
                         (quantile(0.95, "rag_latency_ms", JOB, "provider"), "{{provider}}"))),
            ]),
        ]),
        ("Language models", [
            (8, [
                (8, graf("timeseries", "Estimated cost by model", "currencyUSD",
                         (per("model", "llm_cost_usd_total", JOB), "{{model}}"), stack=True)),
                (8, graf("timeseries", "Tokens", "short",
                         (per("direction", "llm_tokens_total", JOB), "{{direction}}"), stack=True)),
                (8, graf("timeseries", "95th percentile by model", "ms",
                         (quantile(0.95, "llm_latency_ms", JOB, "model"), "{{model}}"))),
            ]),
        ]),
    ]
    panels, number_of, y = [], 1, 0
    for heading, rows in sections:
        panels.append({"id": number_of, "type": "row", "title": heading, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        number_of, y = number_of + 1, y + 1
        for height, cells in rows:
            x = 0
            for width, content in cells:
                panels.append({"id": number_of} | content | {"gridPos": {"x": x, "y": y, "w": width, "h": height}})
                number_of, x = number_of + 1, x + width
            y += height

    def chooser(name, query):
        return {"name": name, "label": name, "type": "query", "datasource": SOURCE, "definition": query,
                "query": {"query": query, "refId": name}, "includeAll": True, "multi": True, "allValue": ".*",
                "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "refresh": 2, "sort": 1, "hide": 0,
                "options": [], "regex": "", "skipUrlSync": False}

    return {
        "id": None, "uid": "spanledger", "title": "Code executions", "tags": ["spanledger", "opentelemetry"],
        "schemaVersion": 39, "version": 1, "editable": True, "refresh": "30s", "timezone": "browser", "graphTooltip": 1,
        "time": {"from": "now-6h", "to": "now"}, "annotations": {"list": []}, "links": [],
        "templating": {"list": [
            {"name": "DS_PROMETHEUS", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {},
             "hide": 0, "includeAll": False, "multi": False, "options": [], "refresh": 1, "regex": "",
             "skipUrlSync": False},
            chooser("job", "label_values(code_executions_total, job)"),
            chooser("runtime", "label_values(code_executions_total, runtime)"),
            chooser("language", "label_values(code_executions_total, language)"),
            chooser("tool", "label_values(runtime_tool_execute_seconds_count, tool_id)"),
        ]},
        "panels": panels,
    }


def main():
    files = {
        "signoz/executions-from-traces.json": from_traces(),
        "signoz/executions-from-metrics.json": from_metrics(),
        "grafana/spanledger.json": grafana(),
    } | {"signoz/rules/" + name: content for name, content in rules()}
    stale = []
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path = HERE / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit("not what build.py makes: " + ", ".join(stale))


if __name__ == "__main__":
    main()
