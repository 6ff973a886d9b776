"""What the handlers in Python share: the columns of a part, their statement, the query of rows."""

import base64

import simplejson

SESSION = ["user_id", "device_model", "os_version", "app_version", "started_at"]
SCAN = ["scanned_at", "foot_length_mm", "foot_breadth_mm", "ball_girth_mm",
        "heel_breadth_mm", "instep_height_mm", "arch_length_mm", "mesh"]
ATTRIBUTES = {"session": SESSION, "left": SCAN, "right": SCAN}
COLUMNS = {
    "session": [*SESSION, "session_attributes"],
    "left": [f"left_{name}" for name in [*SCAN, "attributes"]],
    "right": [f"right_{name}" for name in [*SCAN, "attributes"]],
}


def upsert(columns):
    assignments = ", ".join(f"{name} = EXCLUDED.{name}" for name in columns)
    return f"""
        INSERT INTO measurements (session_id, {", ".join(columns)})
        VALUES (%s, {", ".join(["%s"] * len(columns))})
        ON CONFLICT (session_id) DO UPDATE SET {assignments}"""


def in_object(column):
    if not column.endswith("_mesh"):
        return column
    # encode() breaks its lines.
    return rf"replace(encode({column}, 'base64'), E'\n', '') AS {column}"


UPSERTS = {part: upsert(columns) for part, columns in COLUMNS.items()}
IN_OBJECT = ", ".join(in_object(name) for columns in COLUMNS.values() for name in columns)
# PostgreSQL makes the JSON: Python's own would make floats, or text, of the numbers.
READ_ROWS = f"""
    SELECT session_id, row_to_json(measurement)::text FROM (
        SELECT session_id, {IN_OBJECT}, complete
        FROM measurements WHERE session_id = ANY(%s)
    ) AS measurement"""


def change(arn, keys, image):
    """The part that a record is about, and the values for its statement."""
    part = {"sessions": "session", "scans": keys.get("side")}[arn.split("/")[1]]
    # What is removed has no image, and becomes NULL in each column.
    image = dict(image or {})
    values = {name: image.pop(name, None) for name in ATTRIBUTES[part]}
    if values.get("mesh"):
        values["mesh"] = base64.b64decode(values["mesh"])
    others = {name: value for name, value in image.items() if name not in keys}
    attributes = simplejson.dumps(others, iterable_as_array=True) if others else None
    return part, [keys["session_id"], *values.values(), attributes]
