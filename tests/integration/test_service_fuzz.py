"""Every route, fuzzed from the API's own description: no fault of the service's, no trace of its insides."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service import Service

pytestmark = [pytest.mark.ray, pytest.mark.model]

OPERATIONS = [
    "POST /v1/search",
    "GET /v1/suggest",
    "GET /v1/items/{item_id}",
    "GET /v1/items/{item_id}/similar",
    "POST /v1/recommend",
    "GET /v1/page",
    "PUT /v1/items",
    "PATCH /v1/items/{item_id}",
    "DELETE /v1/items/{item_id}",
]
MODES = ["positive", "negative"]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_whatever_is_sent_the_answer_is_as_described(service: Service, name: str, mode: str):
    method, path = name.split()
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", timeout=30)
    found = [each.ok() for each in schema.get_all_operations()]
    (operation,) = [each for each in found if (each.method.upper(), each.path) == (method, path)]
    generation = schemathesis.GenerationMode(mode)
    statuses: dict[int, int] = {}

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=generation))
    def ask(case: schemathesis.Case) -> None:
        headers = {"authorization": f"Bearer {service.key}"}
        response = case.call(headers=headers, timeout=30)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500, response.text
        assert "Traceback" not in response.text
        assert 'File "' not in response.text
        case.validate_response(
            response,
            checks=[status_code_conformance, content_type_conformance, response_schema_conformance],
            headers=headers,
        )

    try:
        ask()
    except FailureGroup as group:
        raise AssertionError("; ".join(str(failure) for failure in group.exceptions)) from group
    except Exception as error:
        if "Unsatisfiable" in type(error).__name__:  # nothing about this route can be sent wrongly
            return
        raise
    print(f"{mode} {name}: {statuses}")
    assert statuses
