// The same in Node: a statement a part over arrays, in one transaction, and objects put 32 at a time.

const { archive, change, fromArrays, takeEach, write } = require("./batches.cjs");
const { ATTRIBUTES, PARTS, assignments, columns } = require("./model.cjs");
const { serve } = require("./runtime.cjs");

function upsert(part) {
  return `
    INSERT INTO measurements (session_id, ${columns(part).join(", ")})
    ${fromArrays(["text", ...Object.values(ATTRIBUTES[part]), "json"])}
    ON CONFLICT (session_id) DO UPDATE SET ${assignments(columns(part))}`;
}

const UPSERTS = Object.fromEntries(PARTS.map((part) => [part, upsert(part)]));

serve(async (event) => {
  // One statement cannot write a row twice: the last of the batch counts.
  const parts = { session: new Map(), left: new Map(), right: new Map() };
  const answer = takeEach(event, (record) => {
    const { part, row } = change(record);
    parts[part].set(row[0], row);
  });
  const rows = Object.fromEntries(PARTS.map((part) => [part, [...parts[part].values()]]));
  await write(UPSERTS, rows);
  await archive([...new Set(PARTS.flatMap((part) => [...parts[part].keys()]))]);
  return answer;
});
