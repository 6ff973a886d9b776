//! The projector's binary under AWS's own Runtime Interface Emulator.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;

use crate::services::service;

/// A binary of this workspace, as the test profile built it.
///
/// # Panics
/// Where it is not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("this test's path");
    let folder = tests.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` first, or `make test`",
        path.display()
    );
    path
}

/// What the emulator answers when it has ended a function at its timeout.
const TIMED_OUT: &str = "Task timed out after";

/// A running Lambda.
#[derive(Debug)]
pub struct Lambda {
    emulator: Child,
    address: String,
    log: tempfile::NamedTempFile,
}

impl Lambda {
    /// Starts the projector with these variables and no others of its own.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let (address, runtime_api) = (free_address(), free_address());
        let log = tempfile::NamedTempFile::new().expect("a file");
        // Two streams of one file: each write goes to its end.
        let append = || std::fs::OpenOptions::new().append(true).open(log.path());
        let output = || Stdio::from(append().expect("the file"));
        let mut command = Command::new(service("LAMBDA_RIE"));
        command
            .args([
                "--runtime-interface-emulator-address",
                &address,
                "--runtime-api-address",
                &runtime_api,
            ])
            .arg(binary("projector"))
            .env_remove("DATABASE_URL")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output());
        let emulator = command.spawn().expect("the emulator starts");
        let lambda = Self { emulator, address, log };
        for _ in 0..200 {
            if TcpStream::connect(&lambda.address).await.is_ok() {
                return lambda;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the emulator does not listen: {}", lambda.log());
    }

    /// Invokes it with an event, and gives what it answers.
    ///
    /// # Panics
    /// Where the emulator does not answer with JSON.
    pub async fn invoke(&self, event: &str) -> Json {
        let answer = self.try_invoke(event).await.expect("the emulator answers");
        if let Ok(text) = std::str::from_utf8(&answer)
            && text.contains(TIMED_OUT)
        {
            return json!({ "errorType": "Sandbox.Timedout", "errorMessage": text });
        }
        serde_json::from_slice(&answer)
            .unwrap_or_else(|_| panic!("not JSON: {answer:?}; {}", self.log()))
    }

    async fn try_invoke(&self, event: &str) -> anyhow::Result<Bytes> {
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::post("/2015-03-31/functions/function/invocations")
            .header("host", &self.address)
            .body(Full::new(Bytes::from(event.to_owned())))?;
        Ok(sender.send_request(request).await?.into_body().collect().await?.to_bytes())
    }

    /// Kills the function with -9, whatever it is doing, and gives how many processes that were.
    /// The emulator starts another one for the next event.
    ///
    /// # Panics
    /// Where there is no pkill.
    #[must_use]
    pub fn kill_function(&self) -> usize {
        let parent = self.emulator.id().to_string();
        let killed = Command::new("pkill").args(["-9", "-P", &parent]).status().expect("pkill");
        usize::from(killed.success())
    }

    /// What it wrote so far, the emulator's own lines too.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}

impl Drop for Lambda {
    fn drop(&mut self) {
        // The emulator ends its function itself when it is asked politely.
        let asked = Command::new("kill").arg(self.emulator.id().to_string()).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.emulator.kill();
        }
        let _ = self.emulator.wait();
    }
}

/// A Lambda event with these records.
#[must_use]
pub fn event<'a>(records: impl IntoIterator<Item = &'a str>) -> String {
    let records: Vec<&str> = records.into_iter().collect();
    format!(r#"{{"Records":[{}]}}"#, records.join(","))
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}
