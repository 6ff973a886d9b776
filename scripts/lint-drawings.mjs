// Parses every Mermaid drawing of the documents with Mermaid itself: a drawing that it cannot read
// shows on GitHub as an error message.
//
// `make lint` runs it inside `scripts/with-services --tools-only`, which installs Mermaid.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const mermaid = await loadMermaid();
const documents = execFileSync("git", ["ls-files", "-z", "*.md"], { cwd: root, encoding: "utf8" });
let drawings = 0;
let broken = 0;
for (const path of documents.split("\0").filter(Boolean)) {
    for (const { line, source } of drawingsOf(readFileSync(join(root, path), "utf8"))) {
        drawings += 1;
        try {
            await mermaid.parse(source);
        } catch (error) {
            broken += 1;
            console.error(`${path}:${line}: Mermaid cannot read this drawing: ${error.message}`);
        }
    }
}
if (drawings === 0) {
    console.error("lint-drawings: found no drawing: README.md has some, so the search is at fault");
}
process.exit(drawings === 0 || broken > 0 ? 1 : 0);

// Mermaid sanitizes labels with the DOM, so it needs a document even to parse.
async function loadMermaid() {
    const tools = process.env.LINT_NODE_MODULES;
    if (!tools) {
        console.error("lint-drawings: LINT_NODE_MODULES is not set: run this by `make lint`, or as"
            + " `scripts/with-services --tools-only node scripts/lint-drawings.mjs`");
        process.exit(1);
    }
    const require = createRequire(join(tools, "package.json"));
    globalThis.window = new (require("jsdom").JSDOM)("").window;
    globalThis.document = globalThis.window.document;
    return (await import(pathToFileURL(require.resolve("mermaid")))).default;
}

// The drawings of a document, each with the line on which its first line stands.
function drawingsOf(text) {
    const found = [];
    let drawing = null;
    text.split("\n").forEach((line, index) => {
        if (drawing && line.trim() === "```") {
            found.push(drawing);
            drawing = null;
        } else if (drawing) {
            drawing.source += `${line}\n`;
        } else if (line.trim() === "```mermaid") {
            drawing = { line: index + 2, source: "" };
        }
    });
    return found;
}
