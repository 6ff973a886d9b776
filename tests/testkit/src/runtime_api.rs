//! Lambda's Runtime API for one process at a time: hands it events, takes its answers, and says how
//! long each took.
//!
//! AWS's emulator logs and copies too much for a measurement (it answers a one-record event in some
//! milliseconds). Source: AWS Lambda Developer Guide, "Using the Lambda runtime API for custom
//! runtimes".

use std::convert::Infallible;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

/// No invocation of a measurement takes longer.
const PATIENCE: Duration = Duration::from_mins(5);
/// The variable that says how much memory the function has; a caller may set it.
pub const MEMORY: &str = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE";

/// The timeout of a function.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// How long an invocation may take; then the process is killed.
    pub timeout: Duration,
    /// How far the clock of the process is ahead, in seconds.
    pub clock_ahead_s: i64,
}

/// When an invocation ends that has no limit of its own: in 2100.
const FAR_AHEAD_MS: i128 = 4_102_444_800_000;

impl Limit {
    /// The deadline of an invocation that begins now, as the runtime is told.
    fn deadline_ms(self) -> i128 {
        let now_ms = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        let timeout_ms = i128::try_from(self.timeout.as_millis()).unwrap_or(i128::MAX);
        now_ms + i128::from(self.clock_ahead_s) * 1_000 + timeout_ms
    }
}

/// A running function.
#[derive(Debug)]
pub struct Function {
    process: Child,
    limit: Arc<std::sync::Mutex<Option<Limit>>>,
    events: mpsc::Sender<Bytes>,
    happenings: mpsc::Receiver<Happening>,
    started: Instant,
    first_poll: Option<Duration>,
}

/// What an invocation came to.
#[derive(Debug)]
pub struct Answered {
    /// From handing out the event to the answer's last byte.
    pub duration: Duration,
    /// The answer.
    pub answer: Bytes,
    /// Whether it is an error.
    pub error: bool,
}

/// What the process does.
#[derive(Debug)]
enum Happening {
    Polled(Instant),
    HandedOut(Instant),
    Answered { at: Instant, answer: Bytes, error: bool },
}

struct Api {
    events: Mutex<mpsc::Receiver<Bytes>>,
    limit: Arc<std::sync::Mutex<Option<Limit>>>,
    happenings: mpsc::Sender<Happening>,
}

impl Function {
    /// Starts a program as a Lambda function, with these variables beside those of this process.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn start(mut command: Command) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (events, receiver) = mpsc::channel(1);
        let (sender, happenings) = mpsc::channel(16);
        let limit = Arc::new(std::sync::Mutex::new(None));
        let events_of_api = Mutex::new(receiver);
        let api = Api { events: events_of_api, limit: Arc::clone(&limit), happenings: sender };
        let api = Arc::new(api);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An answer of two packets would wait for the acknowledgement of the first.
                let _ = stream.set_nodelay(true);
                let api = Arc::clone(&api);
                let service = service_fn(move |request| serve(Arc::clone(&api), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        let sets_memory = command.as_std().get_envs().any(|(name, _)| name == MEMORY);
        if !sets_memory {
            command.env(MEMORY, "256");
        }
        command
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "bench")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { process, limit, events, happenings, started, first_poll: None })
    }

    /// Gives each invocation from now on this much time.
    ///
    /// # Panics
    /// Never: nobody panics with the limit.
    pub fn set_limit(&self, limit: Limit) {
        *self.limit.lock().expect("nobody panics with it") = Some(limit);
    }

    fn current_limit(&self) -> Option<Limit> {
        *self.limit.lock().expect("nobody panics with it")
    }

    /// From the start of the process to its first request for an event.
    ///
    /// # Errors
    /// Where it ended before.
    pub async fn first_poll(&mut self) -> anyhow::Result<Duration> {
        if let Some(first_poll) = self.first_poll {
            return Ok(first_poll);
        }
        loop {
            if let Happening::Polled(at) = self.next().await? {
                let first_poll = at - self.started;
                self.first_poll = Some(first_poll);
                return Ok(first_poll);
            }
        }
    }

    /// Hands it an event, and waits for the answer or the error that it gives. At its limit the
    /// process is killed.
    ///
    /// # Errors
    /// Where it ended, or did not answer in time.
    pub async fn call(&mut self, event: Bytes) -> anyhow::Result<Result<Bytes, Bytes>> {
        self.first_poll().await?;
        let limit = self.current_limit().map_or(PATIENCE, |limit| limit.timeout);
        self.events.send(event).await.context("the Runtime API has ended")?;
        let answered = timeout(limit, async {
            loop {
                if let Happening::Answered { answer, error, .. } = self.next().await? {
                    return Ok(if error { Err(answer) } else { Ok(answer) });
                }
            }
        });
        match answered.await {
            Ok(answered) => answered,
            Err(_) => {
                self.process.kill().await.context("cannot end the function")?;
                anyhow::bail!("the function timed out after {limit:?}")
            }
        }
    }

    /// Hands it an event, and waits for the answer.
    ///
    /// # Errors
    /// Where it ended, or answered with an error.
    pub async fn invoke(&mut self, event: Bytes) -> anyhow::Result<Answered> {
        let answered = self.answer(event).await?;
        anyhow::ensure!(!answered.error, "the function failed: {:?}", answered.answer);
        Ok(answered)
    }

    /// The same; an answer that is an error is one, too.
    ///
    /// # Errors
    /// If it ended.
    pub async fn answer(&mut self, event: Bytes) -> anyhow::Result<Answered> {
        self.first_poll().await?;
        self.events.send(event).await.context("the Runtime API has ended")?;
        let mut handed_out = Instant::now();
        loop {
            match self.next().await? {
                Happening::Polled(_) => {}
                Happening::HandedOut(at) => handed_out = at,
                Happening::Answered { at, answer, error } => {
                    return Ok(Answered { duration: at - handed_out, answer, error });
                }
            }
        }
    }

    async fn next(&mut self) -> anyhow::Result<Happening> {
        tokio::select! {
            status = self.process.wait() => anyhow::bail!("the function ended: {}", status?),
            happening = timeout(PATIENCE, self.happenings.recv()) => {
                happening.context("the function does not answer")?.context("the Runtime API has ended")
            }
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Since its process was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends it.
    ///
    /// # Errors
    /// Where it cannot be ended.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.process.kill().await.context("cannot end the function")
    }
}

async fn serve(
    api: Arc<Api>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    if path.ends_with("/invocation/next") {
        let _ = api.happenings.send(Happening::Polled(Instant::now())).await;
        // One process polls; where another one did, it would wait here.
        let event = api.events.lock().await.recv().await;
        let _ = api.happenings.send(Happening::HandedOut(Instant::now())).await;
        let limit = *api.limit.lock().expect("nobody panics with it");
        let deadline_ms = limit.map_or(FAR_AHEAD_MS, Limit::deadline_ms);
        let response = Response::builder()
            .header("Lambda-Runtime-Aws-Request-Id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd")
            .header("Lambda-Runtime-Deadline-Ms", deadline_ms.to_string())
            .header(
                "Lambda-Runtime-Invoked-Function-Arn",
                "arn:aws:lambda:eu-central-1:123456789012:function:bench",
            )
            .header("Content-Type", "application/json")
            .body(Full::new(event.unwrap_or_default()));
        return Ok(response.unwrap_or_default());
    }
    let error = path.ends_with("/error");
    let answer = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let at = Instant::now();
    let answer = answer.unwrap_or_default();
    let _ = api.happenings.send(Happening::Answered { at, answer, error }).await;
    let mut accepted = Response::new(Full::default());
    *accepted.status_mut() = StatusCode::ACCEPTED;
    Ok(accepted)
}
