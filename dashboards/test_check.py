#!/usr/bin/env python3
"""Does check.py notice? Each case breaks one thing in a good file and expects a word about it."""
import copy
import json
import pathlib
import tempfile
import unittest

import check

HERE = pathlib.Path(__file__).resolve().parent


def complaints(about, argument):
    check.mistakes.clear()
    about(*argument) if isinstance(argument, tuple) else about(argument)
    return " / ".join(check.mistakes)


class Broken(unittest.TestCase):
    def broken(self, name, checker, change):
        data = json.loads((HERE / name).read_text())
        change(data)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(data, file)
            file.flush()
            return complaints(checker, pathlib.Path(file.name))

    def dashboard(self, change):
        return self.broken("signoz/executions-from-traces.json", check.check_dashboard, change)

    def metrics_dashboard(self, change):
        return self.broken("signoz/executions-from-metrics.json", check.check_dashboard, change)

    def rule(self, change, name="slow-workflows.metrics.json"):
        return self.broken("signoz/rules/" + name, check.check_rule, change)

    def test_the_files_as_they_are_are_good(self):
        self.assertEqual("", self.dashboard(lambda d: None) + self.rule(lambda d: None))

    def test_overlapping_panels(self):
        def change(d):
            d["spec"]["layouts"][0]["spec"]["items"][1]["x"] = 0
        self.assertIn("overlap", self.dashboard(change))

    def test_a_panel_that_is_not_placed(self):
        self.assertIn("not placed", self.dashboard(lambda d: d["spec"]["layouts"].pop()))

    def test_a_time_series_query_in_a_number_panel(self):
        def change(d):
            d["spec"]["panels"]["executions"]["spec"]["queries"][0]["kind"] = "time_series"
        self.assertIn("cannot draw", self.dashboard(change))

    def test_an_unknown_attribute(self):
        text = (HERE / "signoz/executions-from-traces.json").read_text().replace("code.language IN", "code.lingo IN")
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(text)
            file.flush()
            self.assertIn("code.lingo", complaints(check.check_dashboard, pathlib.Path(file.name)))

    def test_an_unknown_metric_and_a_number_without_reduce_to(self):
        def change(d):
            query = d["spec"]["panels"]["executions"]["spec"]["queries"][0]["spec"]["plugin"]["spec"]
            query["aggregations"][0] |= {"metricName": "code_runs_total", "reduceTo": ""}
        said = self.metrics_dashboard(change)
        self.assertIn("code_runs_total", said)
        self.assertIn("reduceTo", said)

    def test_a_rule_that_can_never_fire(self):
        def change(d):
            d["condition"]["thresholds"]["spec"][0]["target"] = 3600
        self.assertIn("never fire", self.rule(change))

    def test_a_rule_that_selects_a_disabled_query(self):
        def change(d):
            d["condition"]["selectedQueryName"] = "A"
        self.assertIn("disabled", self.rule(change, "tool-error-rate.traces.json"))

    def test_promql_that_is_invalid_or_mentions_what_does_not_exist(self):
        for expression, word in (
            ("histogram_quantile(0.95, rate(runtime_tool_execute_seconds_bucket[5m])) by (tool_id)", "needs sum by"),
            ("rate(runtime_bun_process_exits_total[5m]) by (code)", "belongs to an aggregation"),
            ("histogram_quantile(0.95, sum by (le) (rate(runtime_tool_execute_seconds_bucket[5m]))) > 30", "never fire"),
            ('rate(code_executions_total{agent="x"}[5m])', "no label agent"),
            ("sum by (tool_id) (rate(code_executions_total[5m]))", "no label tool_id"),
            ("rate(code_executions[5m])", "not a metric"),
        ):
            with self.subTest(expression):
                self.assertIn(word, complaints(check.check_promql, ("case", expression)))

    def test_grafana_without_the_data_source_variable(self):
        def change(d):
            d["templating"]["list"] = d["templating"]["list"][1:]
            d["panels"][1]["targets"][0] = copy.deepcopy(d["panels"][1]["targets"][0]) | {"datasource": None}
        said = self.broken("grafana/spanledger.json", check.check_grafana, change)
        self.assertIn("no data source variable", said)
        self.assertIn("does not use the data source variable", said)

    def test_a_runbook_that_leads_nowhere(self):
        self.assertIn("does not exist", complaints(check.check_runbook, ("case", "docs/dashboards.md#nothing")))


if __name__ == "__main__":
    unittest.main()
