"""The dashboard and the alerts in monitoring/ ask for what a worker exports, and alerts fire."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from stateful_workflow import Keyring
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.record.metrics import NAMES
from tests.record.test_metrics import Exporter, Scrape, lived
from tests.support.tools import needs

PROJECT: Final = Path(__file__).parents[2]
MONITORING: Final = PROJECT / "monitoring"
ALERTS: Final = (MONITORING / "alerts.yml").read_text("utf-8")
ALERTS_TEST: Final = (MONITORING / "alerts_test.yml").read_text("utf-8")
NAMED: Final = re.findall(r"^ +- alert: (\w+)$", ALERTS, re.MULTILINE)
DASHBOARD: Final[dict[str, Any]] = json.loads(
    (MONITORING / "grafana-dashboard.json").read_text("utf-8")
)
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: Final[list[str]] = [target["expr"] for panel in PANELS for target in panel["targets"]]


def run_promtool(*arguments: str, directory: Path = MONITORING) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=directory, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def asked_for(query: str) -> list[tuple[str, dict[str, str]]]:
    """The metrics of a query, each with the labels that it must equal."""
    found = re.findall(r"\b(stateful_\w+)(?:\{([^}]*)\})?", query)
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in found]


@pytest.fixture(scope="module")
async def scraped(engine: EmbeddedEngine, keyring: Keyring) -> Scrape:
    """What a worker exports to which everything has happened."""
    return await lived(Exporter(), engine.address, keyring, "monitored")


@needs("promtool", package="prometheus")
def test_the_rules_are_well_formed() -> None:
    run_promtool("check", "rules", "alerts.yml")


@needs("promtool", package="prometheus")
def test_every_alert_fires_where_it_should_and_nowhere_else() -> None:
    run_promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_shown_both_to_fire_and_to_be_silent() -> None:
    assert len(NAMED) == len(set(NAMED))
    cases = re.split(r"(?=eval_time:)", ALERTS_TEST)
    fires = {name for case in cases if "exp_alerts" in case for name in named_in(case)}
    silent = {name for case in cases if "exp_alerts" not in case for name in named_in(case)}
    assert fires == silent == set(NAMED)


def named_in(case: str) -> list[str]:
    return re.findall(r"alertname: (\w+)", case)


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    operations = (PROJECT / "docs" / "operations.md").read_text("utf-8")
    anchors = {anchor(title) for title in re.findall(r"^#+ (.*)$", operations, re.MULTILINE)}
    for name, alert in zip(NAMED, ALERTS.split("- alert: ")[1:], strict=True):
        for annotation in ("summary", "description", "runbook"):
            assert re.search(rf"^ +{annotation}: .", alert, re.MULTILINE), (name, annotation)
        document, _, section = re.findall(r"runbook: (\S+)", alert)[0].partition("#")
        assert document == "docs/operations.md"
        assert section in anchors, name


def anchor(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_the_document_names_every_alert_where_its_runbook_leads() -> None:
    operations = (PROJECT / "docs" / "operations.md").read_text("utf-8")
    sections = {
        anchor(text.partition("\n")[0]): text for text in re.split(r"^#+ ", operations, flags=re.M)
    }
    for name, alert in zip(NAMED, ALERTS.split("- alert: ")[1:], strict=True):
        section = re.findall(r"runbook: \S+#(\S+)", alert)[0]
        assert f"`{name}`" in sections[section]


async def test_every_metric_and_label_of_the_alerts_is_exported(scraped: Scrape) -> None:
    expressions = re.sub(r"^ +(summary|description): .*$", "", ALERTS, flags=re.MULTILINE)
    assert_exported(expressions, scraped)
    reasons = {
        reason for names in re.findall(r'reason=~"([^"]*)"', ALERTS) for reason in names.split("|")
    }
    assert reasons <= scraped.label_values


async def test_every_metric_and_label_of_the_dashboard_is_exported(scraped: Scrape) -> None:
    for query in QUERIES:
        assert_exported(query, scraped)


def assert_exported(text: str, scraped: Scrape) -> None:
    seen = {sample.name for sample in scraped.samples}
    asked = asked_for(text)
    assert asked
    for name, labels in asked:
        assert name in seen
        for label, value in labels.items():
            values = {s.labels.get(label) for s in scraped.samples if s.name == name}
            assert value in values, (name, label, value)


@needs("promtool", package="prometheus")
def test_every_query_of_the_dashboard_is_well_formed(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{n}", "expr": query.replace("$__rate_interval", "5m")}
        for n, query in enumerate(QUERIES)
    ]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    run_promtool("check", "rules", "rules.yml", directory=tmp_path)


def test_the_dashboard_can_be_imported_with_any_data_source() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    for panel in PANELS:
        sources = [panel["datasource"], *[target["datasource"] for target in panel["targets"]]]
        assert sources == [chosen] * len(sources)
        assert panel["title"]
        assert panel["description"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_dashboard_shows_every_metric() -> None:
    shown = {re.sub("_bucket$", "", name) for query in QUERIES for name, _ in asked_for(query)}
    assert shown == set(NAMES)
