// What the handlers in Node share: the columns of a part, and the query that gives rows as JSON.

const SESSION = {
  user_id: "text", device_model: "text", os_version: "text", app_version: "text",
  started_at: "timestamptz",
};
const SCAN = {
  scanned_at: "timestamptz",
  foot_length_mm: "numeric", foot_breadth_mm: "numeric", ball_girth_mm: "numeric",
  heel_breadth_mm: "numeric", instep_height_mm: "numeric", arch_length_mm: "numeric",
  mesh: "bytea",
};
const ATTRIBUTES = { session: SESSION, left: SCAN, right: SCAN };
const PARTS = Object.keys(ATTRIBUTES);

const columns = (part) =>
  part === "session"
    ? [...Object.keys(SESSION), "session_attributes"]
    : [...Object.keys(SCAN), "attributes"].map((name) => `${part}_${name}`);

// The list of an upsert: every column takes the new value.
const assignments = (names) => names.map((name) => `${name} = EXCLUDED.${name}`).join(", ");

// encode() breaks its lines.
const inObject = (column) =>
  column.endsWith("_mesh")
    ? `replace(encode(${column}, 'base64'), E'\\n', '') AS ${column}`
    : column;

// PostgreSQL makes the JSON: a number of JavaScript's would lose digits.
const READ_ROWS = `
  SELECT session_id, row_to_json(measurement)::text AS body FROM (
    SELECT session_id, ${PARTS.flatMap(columns).map(inObject).join(", ")}, complete
    FROM measurements WHERE session_id = ANY($1)
  ) AS measurement`;

module.exports = { ATTRIBUTES, PARTS, READ_ROWS, assignments, columns };
