// The handler of a careful team: versions kept in the row, the batch folded and sorted, one guarded
// statement a part over arrays, in one transaction, and objects put 32 at a time.

const { S3Client, PutObjectCommand } = require("@aws-sdk/client-s3");
const { unmarshall } = require("@aws-sdk/util-dynamodb");
const { LosslessNumber, isLosslessNumber, stringify } = require("lossless-json");
const { Pool } = require("pg");
const { ATTRIBUTES, PARTS, READ_ROWS, assignments, columns } = require("./model.cjs");
const { serve } = require("./runtime.cjs");

const CONCURRENCY = 32;
const SEQUENCE_NUMBER_DIGITS = 40;

// A part is written only if its version is greater than the row's.
function upsert(part) {
  const types = ["text", ...Object.values(ATTRIBUTES[part]), "json", "text"];
  const version = `${part}_version`;
  const names = [...columns(part), version];
  return `
    INSERT INTO measurements (session_id, ${names.join(", ")})
    SELECT * FROM unnest(${types.map((type, index) => `$${index + 1}::${type}[]`).join(", ")})
    ON CONFLICT (session_id) DO UPDATE SET ${assignments(names)}
    WHERE measurements.${version} IS NULL OR measurements.${version} < EXCLUDED.${version}`;
}

const UPSERTS = Object.fromEntries(PARTS.map((part) => [part, upsert(part)]));
const bucket = process.env.ARCHIVE_BUCKET;
const s3 = new S3Client({ forcePathStyle: Boolean(process.env.AWS_ENDPOINT_URL) });
const connectionString = process.env.DATABASE_URL;
const pool = new Pool({ connectionString, max: 1, idleTimeoutMillis: 0 });
// Without a listener the end of an idle connection would end the process.
pool.on("error", (error) => console.error(error));

const deserialize = (item) => unmarshall(item, { wrapNumbers: (text) => new LosslessNumber(text) });
const fromSet = (_, value) => (value instanceof Set ? [...value] : value);

// The part that a record is about, its version, and its values in the order of the statement.
function change(record) {
  const keys = deserialize(record.dynamodb.Keys);
  const [, table, , label] = record.eventSourceARN.split("/");
  const part = { sessions: "session", scans: keys.side }[table];
  // What is removed becomes NULL in each column, and keeps its version.
  const image = record.eventName === "REMOVE" ? {} : deserialize(record.dynamodb.NewImage);
  const values = Object.keys(ATTRIBUTES[part]).map((name) => {
    const value = image[name] ?? null;
    if (isLosslessNumber(value)) return value.toString();
    return name === "mesh" && value !== null ? Buffer.from(value, "base64") : value;
  });
  const known = (name) => name in keys || name in ATTRIBUTES[part];
  const others = Object.entries(image).filter(([name]) => !known(name));
  const attributes = others.length > 0 ? stringify(Object.fromEntries(others), fromSet) : null;
  const number = record.dynamodb.SequenceNumber.padStart(SEQUENCE_NUMBER_DIGITS, "0");
  const version = `${label}/${number}`;
  return { part, version, row: [keys.session_id, ...values, attributes, version] };
}

// Batches that lock their rows in one order never deadlock.
const byKey = ([one], [other]) => (one < other ? -1 : 1);

async function write(parts) {
  const client = await pool.connect();
  let failure;
  try {
    await client.query("BEGIN");
    for (const part of PARTS.filter((part) => parts[part].size > 0)) {
      const list = [...parts[part]].sort(byKey).map(([, { row }]) => row);
      const arrays = list[0].map((_, index) => list.map((row) => row[index]));
      await client.query({ name: part, text: UPSERTS[part], values: arrays });
    }
    await client.query("COMMIT");
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    // After a failure this closes the connection, which rolls back.
    client.release(failure);
  }
}

async function archive(sessionIds) {
  const { rows } = await pool.query({ name: "read", text: READ_ROWS, values: [sessionIds] });
  const remaining = rows.values();
  const worker = async () => {
    for (const { session_id, body } of remaining) {
      await s3.send(new PutObjectCommand({
        Bucket: bucket,
        Key: `measurements/${session_id}.json`,
        Body: body,
        ContentType: "application/json",
      }));
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
}

serve(async (event) => {
  // One statement cannot write a row twice: the greatest version of the batch counts.
  const parts = { session: new Map(), left: new Map(), right: new Map() };
  const batchItemFailures = [];
  for (const record of event.Records) {
    try {
      const { part, version, row } = change(record);
      const before = parts[part].get(row[0]);
      if (!before || before.version < version) parts[part].set(row[0], { version, row });
    } catch (error) {
      console.error(error);
      batchItemFailures.push({ itemIdentifier: record.dynamodb.SequenceNumber });
    }
  }
  await write(parts);
  if (bucket) await archive([...new Set(PARTS.flatMap((part) => [...parts[part].keys()]))]);
  return { batchItemFailures };
});
