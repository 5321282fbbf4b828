"""The fields that KServe's resources have, read from the classes of its Python package without importing them."""

import ast
import pathlib
import re


def classes(folder):
    """Class name → (field in a manifest → its type)."""
    found = {}
    for file in pathlib.Path(folder).glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                tables = {
                    part.targets[0].id: ast.literal_eval(part.value)
                    for part in node.body
                    if isinstance(part, ast.Assign) and isinstance(part.value, ast.Dict)
                }
                if {"openapi_types", "attribute_map"} <= tables.keys():
                    names = tables["attribute_map"]
                    found[node.name] = {names[python]: kind for python, kind in tables["openapi_types"].items()}
    return found


def problems(value, kind, known, path=""):
    """What of `value` the class `kind` does not have. Types of Kubernetes itself are not looked into."""
    if items := re.fullmatch(r"list\[(.*)\]", kind):
        for index, item in enumerate(value):
            yield from problems(item, items[1], known, f"{path}[{index}]")
    elif kind in known:
        for field, inner in value.items():
            if field not in known[kind]:
                yield f"{path}.{field}: {kind} has no such field"
            else:
                yield from problems(inner, known[kind][field], known, f"{path}.{field}")
    elif kind in ("str", "int", "bool") and not isinstance(value, {"str": str, "int": int, "bool": bool}[kind]):
        yield f"{path}: {value!r} is no {kind}"
