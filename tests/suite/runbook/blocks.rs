//! The blocks of commands of the runbook, which is three documents, and a shell that runs them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The runbook: the planned move, its part two, and what to do when something is wrong.
pub(crate) const DOCUMENTS: [&str; 3] = ["docs/migration.md", SERVICE, "docs/incidents.md"];
/// Part two: the move of the service, which has a walk of its own.
pub(crate) const SERVICE: &str = "docs/service.md";

/// A block of commands.
#[derive(Debug)]
pub(crate) struct Block {
    /// The document that it is in.
    pub(crate) document: &'static str,
    /// The heading above it.
    pub(crate) section: String,
    /// Whether only AWS can answer it.
    pub(crate) on_aws: bool,
    /// The line of the document that it begins on.
    pub(crate) line: usize,
    /// Its text.
    pub(crate) commands: String,
}

impl Block {
    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.document, self.line)
    }
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The text of a document.
pub(crate) fn text(document: &str) -> String {
    let text = std::fs::read_to_string(root().join(document));
    text.unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// All blocks of the documents, from the first to the last.
pub(crate) fn blocks() -> Vec<Block> {
    DOCUMENTS.into_iter().flat_map(blocks_of).collect()
}

fn blocks_of(document: &'static str) -> Vec<Block> {
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), None::<Block>);
    for (index, line) in text(document).lines().enumerate() {
        match (&mut open, line) {
            (None, "```sh" | "```sh on-aws") => {
                let on_aws = line.ends_with("on-aws");
                open = Some(Block {
                    document,
                    section: section.clone(),
                    on_aws,
                    line: index + 1,
                    commands: String::new(),
                });
            }
            (Some(_), "```") => blocks.extend(open.take()),
            (Some(block), line) => {
                block.commands.push_str(line);
                block.commands.push('\n');
            }
            (None, line) => {
                let fence = line.trim_start().starts_with("```");
                assert!(!fence, "{document}:{}: a block of another kind", index + 1);
                if line.starts_with('#') {
                    line.trim_start_matches('#').trim().clone_into(&mut section);
                }
            }
        }
    }
    assert!(open.is_none(), "{document}: a block has no end");
    blocks
}

/// `aws` and `sam`, each loaded once (`preloaded.py`), with the environment of that moment.
pub(crate) const PRELOADED: &str = r#"
exec {server}< <(AWS_MAX_ATTEMPTS=1 exec "$(dirname "$(command -v aws)")/python" "$PRELOADED")
read -r PORT <&"$server"
export PORT
preloaded() {
    local to said
    exec {to}<>"/dev/tcp/127.0.0.1/$PORT"
    { printf '%s\n' $(($# + 1)); printf '%s\0' "$PWD" "$@"; } >&"$to"
    said=$(cat <&"$to")
    exec {to}<&-
    printf '%s' "${said%$'\n'exit *}"
    return "${said##*$'\n'exit }"
}
aws() { preloaded aws "$@"; }
sam() { preloaded sam "$@"; }
export -f preloaded aws
"#;

/// A shell that runs one block after the other and stops at the first command that fails.
pub(crate) struct Shell {
    child: Child,
    input: ChildStdin,
    output: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Shell {
    /// Starts it in a folder.
    pub(crate) async fn start(folder: &Path) -> Self {
        let mut child = Command::new("bash")
            .args(["--norc", "-euo", "pipefail"])
            .current_dir(folder)
            .env_remove("DATABASE_URL")
            .env("SAM_CLI_POLL_DELAY", "0.3")
            .env("WAIT_SECONDS", "1")
            .env("TRIES", "90")
            .env("PRELOADED", root().join("tests/suite/runbook/preloaded.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("bash");
        let input = child.stdin.take().expect("an input");
        let output = BufReader::new(child.stdout.take().expect("an output")).lines();
        let mut shell = Self { child, input, output };
        shell.run(PRELOADED).await;
        shell
    }

    /// Runs commands, and gives what they printed.
    pub(crate) async fn run(&mut self, commands: &str) -> String {
        // Standard input is where the commands come from.
        let text = format!("{{\n{commands}\n}} </dev/null 2>&1\nprintf '\\nend-of-block\\n'\n");
        self.input.write_all(text.as_bytes()).await.expect("bash reads");
        let mut printed = String::new();
        loop {
            let line = tokio::time::timeout(Duration::from_mins(4), self.output.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("hangs in\n{commands}\n{printed}"));
            match line.expect("bash writes") {
                Some(line) if line == "end-of-block" => return printed,
                Some(line) => {
                    printed.push_str(&line);
                    printed.push('\n');
                }
                None => {
                    let status = self.child.wait().await;
                    panic!("{status:?}: stopped in\n{commands}\n{printed}");
                }
            }
        }
    }
}
