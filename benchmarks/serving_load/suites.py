"""Whole suites against a server: OpenAI's client, Schemathesis on the server's own OpenAPI document, a real Ray.

figures = await conformance(run)
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from prometheus_client.parser import text_string_to_metric_families

import measure
from serving_load.client import connected
from serving_load.run import Run, finding
from serving_load.target import Target

_TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
_ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/infill")
_EXAMPLES = 2000  # drawn for each endpoint, beside those that cover its schema


async def conformance(run: Run) -> dict[str, Any]:
    """The table of requests that OpenAI's own client sends, in four ways on two endpoints."""
    passed, cases, _ = await _pytest(
        "test_serving_conformance.py", *(() if run.size.judges_memory else ("-k", "plain"))
    )
    run.say(f"conformance: {passed} of {cases}")
    return finding("all cases of the table", passed == cases > 0, cases=cases, passed=passed)


async def schema(run: Run) -> dict[str, Any]:
    """What Schemathesis draws from the server's OpenAPI document, right and wrong."""
    examples = _EXAMPLES if run.size.judges_memory else 3
    with run.own() as target, tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = ["run", f"{target.url}/openapi.json", "--max-examples", str(examples), "--seed", "1", "--no-color"]
        arguments += ["--continue-on-failure", "--report", "json", "--report-json-path", str(report)]
        # What the bundle's limits refuse follows the schema, which does not know them.
        arguments += ["--exclude-checks", "positive_data_acceptance"]
        await _finished([str(Path(sys.executable).with_name("schemathesis")), *arguments], cwd=folder)
        told = json.loads(report.read_text("utf-8"))
        statuses = await _statuses(target)
    failures = {each["title"]: each["operations"] for each in told["failures"]}
    least = min(sum(statuses[endpoint].values()) for endpoint in _ENDPOINTS)
    broken = sum(count for each in statuses.values() for status, count in each.items() if status >= "500")
    run.say(f"schema: {told['test_cases']['generated']} cases, {broken} answered with 5xx")
    return finding(
        f"no 5xx and no failed check, at least {examples} cases an endpoint",
        not failures and not broken and not told["errors"] and least >= examples,
        cases=told["test_cases"]["generated"],
        failures=failures,
        statuses=statuses,
        schemathesis=told["schemathesis_version"],
    )


async def ray(run: Run) -> dict[str, Any]:
    """Two replicas under a real Ray, one of them killed while both write."""
    passed, cases, told = await _pytest("test_serving_ray.py", "-m", "ray")
    goal = "all tests; the death of a replica takes no more than its own requests, and another takes its place"
    if not passed:
        run.say("ray: it is not installed; make test-ray installs it")
        return finding(goal, None if not cases else False, cases=cases, passed=passed)
    run.say(f"ray: {passed} of {cases}, {told}")
    figures = {name: float(value) for name, value in told.items()}
    met = passed == cases and figures["lost"] <= figures["at_the_killed_one"]
    return finding(goal, met, cases=cases, passed=passed, **figures)


async def _pytest(name: str, *arguments: str) -> tuple[int, int, dict[str, str]]:
    """How many tests of a file passed, how many ran, and the properties that they recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]  # the family that holds recorded properties
        await _finished([*command, str(_TESTS / name), *arguments], cwd=_TESTS.parent)
        suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest's own
    assert suite is not None
    for case in suite.iter("testcase"):
        for failure in (*case.iter("failure"), *case.iter("error")):
            measure.say(f"{case.attrib['name']}: {failure.attrib.get('message', '')[:500]}")
    count = {kind: int(suite.attrib[kind]) for kind in ("tests", "failures", "errors", "skipped")}
    cases = count["tests"] - count["skipped"]
    properties = {each.attrib["name"]: each.attrib["value"] for each in suite.iter("property")}
    return cases - count["failures"] - count["errors"], cases, properties


async def _finished(command: Sequence[str], cwd: str | Path) -> None:
    """Run a program to its end; what it found is in its report, whatever its exit status."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    await process.wait()


async def _statuses(target: Target) -> dict[str, dict[str, int]]:
    """Answers by endpoint and status, as the server's metrics count them."""
    async with connected(target) as client:
        text = (await client.get("/metrics")).raw
    found: dict[str, dict[str, int]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == "dpad_requests" else ():
            if sample.name == "dpad_requests_total":
                found.setdefault(sample.labels["endpoint"], {})[sample.labels["status"]] = int(sample.value)
    return found
