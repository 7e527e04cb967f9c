"""Whether a bill of materials is one, by the schemas of CycloneDX itself."""

from __future__ import annotations

import json


def problems_of(text: str) -> list[str]:
    """What CycloneDX 1.6 does not allow in the document, and references of it that lead nowhere."""
    # Here, since a process of `make test` that runs none of these tests would spend three seconds on the import.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        return [str(error)]
    document = json.loads(text)
    references = [one["bom-ref"] for one in (document["metadata"]["component"], *document["components"])]
    named = {one for entry in document["dependencies"] for one in (entry["ref"], *entry["dependsOn"])}
    twice = {one for one in references if references.count(one) > 1}
    return [
        *(f"{one}: twice" for one in sorted(twice)),
        *(f"{one}: unknown" for one in sorted(named - set(references))),
    ]
