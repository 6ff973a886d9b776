//! A share of a processor for one process, as a Lambda function has one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

use crate::measure::cpu_ms;

/// The scheduler hands out the share in periods of this length. Lambda's is not documented.
const PERIOD_US: u32 = 20_000;
/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// A share that holds until this value is dropped.
#[derive(Debug)]
pub(crate) struct Quota(Means);

#[derive(Debug)]
enum Means {
    /// The kernel's quota: the group's folder.
    ControlGroup(PathBuf),
    /// A shell that stops and continues the process; it ends with this value.
    DutyCycle(#[expect(dead_code, reason = "it is held to be dropped")] Child),
    /// The share is all processors of this machine, or more.
    Unlimited,
}

impl Quota {
    /// Gives a process this many processors.
    ///
    /// # Errors
    /// If neither a control group nor a shell can be had.
    pub(crate) fn of(pid: u32, processors: f64) -> anyhow::Result<Self> {
        let here = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if processors >= here as f64 {
            return Ok(Self(Means::Unlimited));
        }
        match control_group(pid, processors) {
            Ok(folder) => Ok(Self(Means::ControlGroup(folder))),
            Err(_) => duty_cycle(pid, processors).map(|shell| Self(Means::DutyCycle(shell))),
        }
    }

    /// How it is done, for the report.
    pub(crate) fn means(&self) -> &'static str {
        match self.0 {
            Means::ControlGroup(_) => "the CPU quota of a control group, in periods of 20 ms",
            Means::DutyCycle(_) => {
                "SIGSTOP and SIGCONT in periods of 20 ms (there is no control group to be had), \
                    which stop the function even while it waits"
            }
            Means::Unlimited => "nothing: it is all processors of this machine",
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        if let Means::ControlGroup(folder) = &self.0 {
            // It cannot be removed before its last process has ended; then it stays, empty.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// A group of both versions' hierarchies with this quota, and the process in it.
fn control_group(pid: u32, processors: f64) -> anyhow::Result<PathBuf> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few periods")]
    let quota = (f64::from(PERIOD_US) * processors) as u32;
    let root = Path::new(GROUPS);
    let first_version = root.join("cpu").is_dir();
    let parent = if first_version { root.join("cpu") } else { root.to_owned() };
    let folder = parent.join(format!("projector-bench-{pid}"));
    std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
    let write = |name: &str, value: String| {
        std::fs::write(folder.join(name), value).with_context(|| format!("cannot write {name}"))
    };
    let written = if first_version {
        write("cpu.cfs_period_us", PERIOD_US.to_string())
            .and_then(|()| write("cpu.cfs_quota_us", quota.to_string()))
    } else {
        write("cpu.max", format!("{quota} {PERIOD_US}"))
    };
    let written = written.and_then(|()| write("cgroup.procs", pid.to_string()));
    if let Err(error) = written {
        let _ = std::fs::remove_dir(&folder);
        return Err(error);
    }
    Ok(folder)
}

/// A shell that stops the process for a part of each period, for as long as there is one.
fn duty_cycle(pid: u32, processors: f64) -> anyhow::Result<Child> {
    ensure!(processors < 1.0, "without control groups a process has one processor at least");
    let period = Duration::from_micros(u64::from(PERIOD_US));
    let on = period.mul_f64(processors);
    let script = format!(
        "while kill -STOP {pid} && sleep {:.4} && kill -CONT {pid} && sleep {:.4}; do :; done",
        period.saturating_sub(on).as_secs_f64(),
        on.as_secs_f64()
    );
    Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a shell")
}

/// How a share is given, and the processors that a process uses with it while it computes without a
/// pause.
///
/// # Errors
/// If no shell can be started, or the quota fails.
pub(crate) async fn of_a_busy_process(processors: f64) -> anyhow::Result<(&'static str, f64)> {
    let mut busy = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a shell")?;
    let pid = busy.id().context("the shell has ended")?;
    let quota = Quota::of(pid, processors)?;
    let before = cpu_ms(pid)?;
    let window = Duration::from_secs(1);
    tokio::time::sleep(window).await;
    let used = cpu_ms(pid)? - before;
    busy.kill().await?;
    Ok((quota.means(), used / window.as_secs_f64() / 1e3))
}
