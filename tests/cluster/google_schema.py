"""Google's own description of Compute Engine (its discovery document) as a strict JSON schema."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema


@cache
def validator(name: str = "Instance") -> jsonschema.Draft202012Validator:
    """Return a validator of a resource that refuses unknown fields, types and words."""
    place = files("googleapiclient") / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(place.read_text())["schemas"]
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{name}", "$defs": {key: converted(schema) for key, schema in schemas.items()}}
    )


def faults(body: dict[str, Any], name: str = "Instance") -> list[str]:
    """List what is wrong with the body of a request."""
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator(name).iter_errors(body)]


def converted(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn a schema of Google's dialect into JSON schema; 64-bit integers are strings there."""
    if "$ref" in schema:
        return {"$ref": "#/$defs/" + schema["$ref"]}
    match schema.get("type"):
        case "any":
            return {}
        case "object":
            out: dict[str, Any] = {"type": "object"}
            if "properties" in schema:
                out["properties"] = {key: converted(value) for key, value in schema["properties"].items()}
                out["additionalProperties"] = False
            if "additionalProperties" in schema:
                out["additionalProperties"] = converted(schema["additionalProperties"])
            return out
        case "array":
            return {"type": "array", "items": converted(schema["items"])}
        case "string" if schema.get("format") in ("int64", "uint64"):
            return {"type": ["string", "integer"]}
        case kind:
            return {"type": kind} | ({"enum": schema["enum"]} if "enum" in schema else {})
