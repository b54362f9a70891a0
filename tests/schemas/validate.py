"""Reports which documents fit their JSON Schema: `validate.py SCHEMA...` reads one line for each document, the number of
its schema and the document in JSON. For each, it prints a line with the errors, which is empty if the document fits."""

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
