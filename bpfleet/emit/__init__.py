"""What is generated from the model: Pulumi's schema, the documents' JSON Schema, the reference pages.

    shapes.py       a resource type as Pulumi sees it: its inputs and outputs (the provider reads this too)
    pulumi.py       provider/schema.json
    json_schema.py  docs/reference/document.schema.json
    reference.py    docs/reference/*.md
    files.py        which file holds what; writing and comparing them

`python -m bpfleet.emit` writes all of them; `python -m bpfleet.emit --check` says which are out of date.
"""
