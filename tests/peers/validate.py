"""JSON Schema by jsonschema, a validator that Tributary did not write.

Standard input: one line with the schema, then a document a line. Prints a line for each: nothing, or what is wrong.
"""

import json
import sys

from jsonschema import Draft202012Validator

lines = sys.stdin.read().splitlines()
schema = json.loads(lines[0])
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
for line in lines[1:]:
    errors = validator.iter_errors(json.loads(line))
    print("; ".join(f"{error.json_path}: {error.message}" for error in errors).replace("\n", " "))
