//! Medians, and what the kernel says of a process and of this machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The middle value; NaN where there is none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The middle of the second of each pair.
pub(crate) fn median_of(points: &[(f64, f64)]) -> f64 {
    median(points.iter().map(|point| point.1))
}

/// The value below which this share of the values lies; NaN where there is none.
pub(crate) fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length"
    )]
    let place = (values.len().saturating_sub(1) as f64 * share).round() as usize;
    values.get(place).copied().unwrap_or(f64::NAN)
}

/// Each of `a` by its partner in `b`.
pub(crate) fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

/// Milliseconds of processor time that a process's living threads have used, to the microsecond.
///
/// # Errors
/// Where there is no such process.
pub(crate) fn cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0.0;
    let tasks = format!("/proc/{pid}/task");
    for task in std::fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        // A thread can end meanwhile.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let of_thread = text.split_whitespace().next().unwrap_or_default();
        nanoseconds += of_thread.parse::<f64>().unwrap_or_default();
    }
    Ok(nanoseconds / 1e6)
}

/// Seconds of processor time that a process has used, and all below it that have ended, by ticks of
/// 10 ms.
///
/// # Errors
/// Where there is no such process.
pub(crate) fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // Behind the program's name, which can hold anything: utime, stime, cutime, cstime (proc(5)).
    let behind = text.rsplit(')').next().unwrap_or_default();
    let ticks = behind.split_whitespace().skip(11).take(4).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// The same of a process and all below it that live.
pub(crate) fn cpu_s_of_family(pid: u32) -> f64 {
    family(pid).into_iter().filter_map(|pid| cpu_s(pid).ok()).sum()
}

/// Milliseconds of processor time that the living threads of a process and of all below it have
/// used, to the microsecond.
pub(crate) fn cpu_ms_of_family(pid: u32) -> f64 {
    family(pid).into_iter().filter_map(|pid| cpu_ms(pid).ok()).sum()
}

/// A process and all below it.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let children = format!("/proc/{0}/task/{0}/children", family[next]);
        let text = std::fs::read_to_string(children).unwrap_or_default();
        family.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        next += 1;
    }
    family
}

/// A line of `/proc/PID/status` in MB, such as `VmHWM`, the most memory that a process had
/// resident.
///
/// # Errors
/// Where there is no such process.
pub(crate) fn status_mb(pid: u32, name: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
    let kilobytes: f64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?;
    Ok(kilobytes / 1e3)
}

/// A binary of this workspace, beside this one.
///
/// # Errors
/// Where it is not built.
pub(crate) fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.parent().map(|folder| folder.join(name));
    let path = path.filter(|path| path.exists());
    path.with_context(|| format!("{name} is not built: run `make bench`"))
}

/// The folder of `tests/peers`.
pub(crate) fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("peers")
}

/// Processors and memory, as the kernel says them.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kilobytes: u64 =
        after(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    format!("{cores} processors ({}), {} GiB", after(&processors, "model name"), kilobytes >> 20)
}
