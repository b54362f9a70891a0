"""Says which documents fit their JSON Schema: `validate.py SCHEMA...` reads a line a document, the number of its schema
and the document in JSON, and prints a line for each, empty if the document fits and else what is wrong with it."""

import json
import sys

import fastjsonschema

validators = []
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        validators.append(fastjsonschema.compile(json.load(file), use_default=False))
for line in sys.stdin:
    number, document = json.loads(line)
    try:
        validators[number](document)
        print()
    except fastjsonschema.JsonSchemaValueException as error:
        print(" ".join(error.message.split()))
