"""The JSON Schema that editors complete from agrees with what load accepts, as far as JSON Schema can say it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bananas.manifest import schema
from bananas.manifest_schema import Function, Pool, Retries, Schedule, problems
from bananas.spec import FunctionSpec, PoolSpec, RetrySpec, ScheduleSpec

ROOT = Path(__file__).parents[2]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "boolean": bool,
}


def valid(value: Any, rule: dict[str, Any], root: dict[str, Any]) -> bool:
    """JSON Schema 2020-12, the keywords that our schema uses; an unknown keyword fails the test."""
    notes = {"$schema", "$defs", "title", "description", "default"}
    return all(_holds(key, rule, value, root) for key in rule.keys() - notes)


def _holds(key: str, rule: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    want = rule[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match key:
        case "$ref":
            return valid(value, root["$defs"][want.removeprefix("#/$defs/")], root)
        case "anyOf":
            return any(valid(value, option, root) for option in want)
        case "type":
            names = [want] if isinstance(want, str) else want
            return any(isinstance(value, TYPES[n]) and isinstance(value, bool) == (n == "boolean") for n in names)
        case "const" | "enum":
            return any(
                value == option and type(value) is type(option) for option in ([want] if key == "const" else want)
            )
        case "pattern":
            return not isinstance(value, str) or bool(re.search(want, value))
        case "minimum":
            return not is_number or value >= want
        case "exclusiveMinimum":
            return not is_number or value > want
        case "maximum":
            return not is_number or value <= want
        case "maxItems":
            return not isinstance(value, list) or len(value) <= want
        case "items":
            return not isinstance(value, list) or all(valid(item, want, root) for item in value)
        case "required":
            return not isinstance(value, dict) or set(want) <= value.keys()
        case "properties":
            return not isinstance(value, dict) or all(valid(value[k], r, root) for k, r in want.items() if k in value)
        case "patternProperties":
            return not isinstance(value, dict) or all(
                valid(item, each, root)
                for pattern, each in want.items()
                for k, item in value.items()
                if re.search(pattern, k)
            )
        case "additionalProperties":
            assert want is False
            known = rule.get("properties", {})
            patterns = rule.get("patternProperties", {})
            return not isinstance(value, dict) or all(
                k in known or any(re.search(pattern, k) for pattern in patterns) for k in value
            )
    raise AssertionError(f"the test does not know the keyword {key}")


GOOD: list[Any] = [
    {"version": 1},
    {"version": 1, "functions": None, "pools": {"a": None}},
    {"version": 1, "functions": {"f": {"retries": 3, "env": {"A": "x"}, "timeout": "1.5h", "max_uses": 1}}},
    {"version": 1, "functions": {"f": {"single_use": True, "max_lifetime": "1h"}}, "pools": {"p": {"stems": 0}}},
    {"version": 1, "functions": {"f": {"retries": {"max": 0, "factor": 1.5, "jitter": "full"}, "allow_pools": []}}},
    {"version": 1, "pools": {"p": {"gpus": "all", "network": "open"}, "q": {"gpus": 2}}},
    {"version": 1, "pools": {"p": {"egress": ["db=10.0.0.5:5432", "db6=[fd00::5]:1"]}}},
    {"version": 1, "pools": {"p": {"cpus": 0.5, "memory": "2Gi", "egress": ["a.b:1"], "concurrency": 512}}},
]
GOOD += [
    {"version": 1, "functions": {"f": {"schedule": "@daily"}}},
    {"version": 1, "functions": {"f": {"schedule": {"cron": "0 2 * * *", "tz": "Asia/Tokyo", "payload": None}}}},
    {"version": 1, "functions": {"f": {"schedule": {"cron": "* * * * *", "catchup": "all", "payload": [1, {"a": 2}]}}}},
]
BAD: list[Any] = [
    {"version": 1, "functions": {"f": {"schedule": 5}}},
    {"version": 1, "functions": {"f": {"schedule": {"tz": "UTC"}}}},
    {"version": 1, "functions": {"f": {"schedule": {"cron": "@daily", "overlap": "never"}}}},
    {"version": 1, "functions": {"f": {"schedule": {"cron": "@daily", "zone": "UTC"}}}},
    [],
    {},
    {"version": 2},
    {"version": "1"},
    {"version": True},
    {"version": 1, "extra": 1},
    {"version": 1, "functions": {"Bad": {}}},
    {"version": 1, "functions": {"f": {"timout": "1s"}}},
    {"version": 1, "functions": {"f": {"timeout": 30}}},
    {"version": 1, "functions": {"f": {"timeout": "30"}}},
    {"version": 1, "functions": {"f": {"timeout": None}}},
    {"version": 1, "functions": {"f": {"retries": 21}}},
    {"version": 1, "functions": {"f": {"retries": {"maximum": 1}}}},
    {"version": 1, "functions": {"f": {"retries": "3"}}},
    {"version": 1, "functions": {"f": {"env": {"A": 1}}}},
    {"version": 1, "functions": {"f": {"env": {"A-B": "x"}}}},
    {"version": 1, "functions": {"f": {"priority": "urgent"}}},
    {"version": 1, "functions": {"f": {"single_use": "yes"}}},
    {"version": 1, "functions": {"f": {"runtime": "node20"}}},
    {"version": 1, "functions": {"f": {"handler": "handle"}}},
    {"version": 1, "functions": {"f": {"allow_pools": "default"}}},
    {"version": 1, "functions": {"f": {"gpus": 1}}},
    {"version": 1, "functions": {"f": 3}},
    {"version": 1, "pools": {"p": {"concurrency": 0}}},
    {"version": 1, "pools": {"p": {"concurrency": 1.5}}},
    {"version": 1, "pools": {"p": {"cpus": 0}}},
    {"version": 1, "pools": {"p": {"cpus": True}}},
    {"version": 1, "pools": {"p": {"memory": "256"}}},
    {"version": 1, "pools": {"p": {"egress": ["a"]}}},
    {"version": 1, "pools": {"p": {"egress": ["a:1"] * 33}}},
    {"version": 1, "pools": {"p": {"gpus": "some"}}},
    {"version": 1, "pools": {"p": {"network": "closed"}}},
]


@pytest.mark.parametrize("data", GOOD, ids=str)
def test_what_the_model_takes_the_schema_takes(data: Any) -> None:
    """An editor does not underline what deploys."""
    assert problems(data)[1] == []
    assert valid(data, schema(), schema())


@pytest.mark.parametrize("data", BAD, ids=str)
def test_what_the_model_refuses_the_schema_refuses(data: Any) -> None:
    """An editor underlines what would not deploy."""
    assert problems(data)[1]
    assert not valid(data, schema(), schema())


def test_the_example_app_fits_the_schema_with_its_variables() -> None:
    """${VAR} is allowed where a text or number stands, since an editor cannot know its value."""
    data = yaml.safe_load((ROOT / "bananas.yaml").read_text("utf-8"))
    assert valid(data, schema(), schema())
    assert valid({"version": 1, "pools": {"p": {"concurrency": "${N}", "memory": "${M:-1}G"}}}, schema(), schema())


@pytest.mark.parametrize(
    ("model", "spec"), [(Function, FunctionSpec), (Pool, PoolSpec), (Retries, RetrySpec), (Schedule, ScheduleSpec)]
)
def test_every_field_of_the_spec_has_a_key_with_a_description_and_the_default(model: Any, spec: Any) -> None:
    """Nothing that a gateway takes is out of reach of bananas.yaml."""
    described = schema()["$defs"][model.__name__]["properties"]
    assert all(key["description"] for key in described.values())
    reached = {m.into for f in model.model_fields.values() for m in f.metadata if getattr(m, "into", None)}
    assert reached == set(spec.__struct_fields__)
