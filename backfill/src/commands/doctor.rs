//! `backfill doctor`: checks every part that a run needs, before the run. It writes nothing, each
//! check has a short limit, independent ones run at the same time, and one that fails keeps no
//! other from running.

mod clock;
mod database;
mod finding;
mod streams;

use std::time::{Duration, Instant, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{Region, SdkConfig};
use futures_util::future::join_all;
use projector::archive::Archive;
use projector::cause::REACH_S3;
use projector::change::Tables;
use projector::config::{ArchiveConfig, Config, ConfigError};
use projector::error::{self, Error};
use projector::start;
use serde_json::json;
use time::OffsetDateTime;

use self::clock::ServiceClock;
use self::finding::{AGAIN, Finding, Verdict, failed, report, timed};

use crate::cli::Settings;
use crate::console;
use crate::outcome::Outcome;
use crate::output::Output;

/// Credentials are looked for even without a region, in any one: both may be wrong.
const ANY_REGION: Region = Region::from_static("us-east-1");

pub(crate) async fn run(settings: &Settings, output: &Output) -> anyhow::Result<Outcome> {
    let findings = examine(settings).await;
    output.result(
        || report(&findings),
        || Ok(json!({ "checks": serde_json::to_value(&findings)? })),
    )?;
    let Some(conclusion) = failed(&findings) else { return Ok(Outcome::Done) };
    output.explain(&conclusion);
    Ok(Outcome::Configuration)
}

async fn examine(settings: &Settings) -> Vec<Finding> {
    let (config, faults) = settings.config_and_faults();
    let mut findings = judge_settings(&faults);
    let Some(config) = config else { return findings };
    let wrong = |prefix: &str| faults.iter().any(|fault| fault.variable.starts_with(prefix));
    let of_database = async {
        if wrong("DATABASE_") {
            return database::not_configured();
        }
        // The archive is checked by itself.
        Box::pin(database::check(Config { archive: None, ..config.clone() })).await
    };
    let (database, aws) = tokio::join!(of_database, Box::pin(of_aws(&config, wrong("ARCHIVE_"))));
    findings.extend(database);
    findings.extend(aws);
    findings
}

fn judge_settings(faults: &[ConfigError]) -> Vec<Finding> {
    if faults.is_empty() {
        return vec![Verdict::works("complete").of("settings", Duration::ZERO)];
    }
    let finding = |fault: &ConfigError| {
        let remedy = format!("set {} as `backfill doctor --help` says", fault.variable);
        Verdict::fails(fault.to_string(), remedy).of("settings", Duration::ZERO)
    };
    faults.iter().map(finding).collect()
}

/// Everything that is asked of AWS. Without a region and credentials nothing more is tried.
async fn of_aws(config: &Config, archive_is_wrong: bool) -> Vec<Finding> {
    let start = Instant::now();
    let region = start::region().await;
    let took = start.elapsed();
    let verdict = match &region {
        Ok(region) => Verdict::works(region.as_ref()),
        Err(error) => {
            Verdict::fails(error.to_string(), "set AWS_REGION to the region of the tables")
        }
    };
    let mut findings = vec![verdict.of("AWS region", took)];
    let aws = impatient(start::aws_in(region.as_ref().ok().cloned().unwrap_or(ANY_REGION)).await);
    let start = Instant::now();
    let credentials = start::credentials(&aws).await;
    let verdict = match &credentials {
        Ok(credentials) => {
            judge_credentials(credentials.access_key_id(), credentials.expiry(), SystemTime::now())
        }
        Err(problem) => {
            Verdict::fails(format!("cannot be found: {problem}"), start::CREDENTIALS_REMEDY)
        }
    };
    findings.push(verdict.of("AWS credentials", start.elapsed()));
    findings.extend(if region.is_ok() && credentials.is_ok() {
        services(config, &aws, archive_is_wrong).await
    } else {
        let Tables { sessions, scans } = &config.tables;
        let tables = [sessions, scans];
        let tables = tables
            .into_iter()
            .flat_map(|table| [format!("table {table}"), format!("readers of {table}")]);
        let unknown = Verdict::unknown("not checked without an AWS region and credentials");
        let checks =
            ["bucket".to_owned()].into_iter().chain(tables).chain(["clock: AWS".to_owned()]);
        checks.map(|check| unknown.clone().of(check, Duration::ZERO)).collect()
    });
    findings
}

/// An operator waits: each call is made once, and ends before the limit of its check.
pub(crate) fn impatient(aws: SdkConfig) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_timeout(Duration::from_secs(4))
        .build();
    aws.into_builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build()
}

async fn services(config: &Config, aws: &SdkConfig, archive_is_wrong: bool) -> Vec<Finding> {
    let clock = ServiceClock::default();
    let client = streams::client(aws, &clock);
    let Tables { sessions, scans } = &config.tables;
    let tables = [("SESSIONS_TABLE", sessions), ("SCANS_TABLE", scans)];
    let tables =
        join_all(tables.map(|(variable, table)| streams::check(&client, aws, variable, table)));
    let (bucket, tables) =
        tokio::join!(bucket(config.archive.as_ref(), aws, archive_is_wrong), tables);
    let clock = clock.verdict().of("clock: AWS", Duration::ZERO);
    [bucket].into_iter().chain(tables.into_iter().flatten()).chain([clock]).collect()
}

async fn bucket(archive: Option<&ArchiveConfig>, aws: &SdkConfig, is_wrong: bool) -> Finding {
    let work = async {
        match archive {
            None if is_wrong => Verdict::unknown("not checked: see the settings above"),
            None => Verdict::unknown("ARCHIVE_BUCKET is not set: no objects are written"),
            Some(config) => {
                let archive = Archive::new(config.clone(), aws);
                let key = archive.key(&format!("doctor-{:016x}", fastrand::u64(..)));
                judge_bucket(config, archive.probe(&key).await)
            }
        }
    };
    timed("bucket", REACH_S3, work).await
}

fn judge_bucket(config: &ArchiveConfig, probed: Result<(), Error>) -> Verdict {
    let ArchiveConfig { bucket, prefix, objects } = config;
    let error = match probed {
        Ok(()) => {
            return Verdict::works(format!(
                "s3://{bucket}/{prefix}, ARCHIVE_OBJECTS={}: the role may read and list; whether it \
                 may write (s3:PutObject, s3:PutObjectTagging) shows only in a write, which this \
                 command does not make",
                objects.name()
            ));
        }
        Err(error) => error,
    };
    match &error {
        Error::Archive { message, source, .. } | Error::NoBucket { message, source, .. } => {
            let remedy = message.remedy.as_deref().unwrap_or(AGAIN);
            Verdict::fails(format!("s3://{bucket}/{prefix}: {}: {source}", message.what), remedy)
        }
        other => Verdict::fails(error::chain(other), AGAIN),
    }
}

/// Who is logged in, as far as that is known without a call, and for how long.
fn judge_credentials(key: &str, expiry: Option<SystemTime>, now: SystemTime) -> Verdict {
    let end: String = key.chars().skip(key.chars().count().saturating_sub(4)).collect();
    let text = format!("found, access key ending in {end}");
    match expiry {
        None => Verdict::works(text),
        Some(expiry) if expiry <= now => {
            Verdict::fails(format!("{text}, expired"), "renew them (with SSO: `aws sso login`)")
        }
        Some(expiry) => {
            let until = console::clock(OffsetDateTime::from(expiry));
            Verdict::works(format!("{text}, valid until {until}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, judge_bucket, judge_credentials};
    use projector::cause::Message;
    use projector::config::{ArchiveConfig, ArchiveObjects};
    use projector::error::Error;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_refusal_of_the_bucket_has_what_s3_said_and_the_remedy() {
        let (bucket, prefix) = ("feet".to_owned(), "measurements/".to_owned());
        let config = ArchiveConfig { bucket, prefix, objects: ArchiveObjects::Complete };
        let denied = Error::Archive {
            operation: "GET",
            bucket: "feet".to_owned(),
            key: "measurements/x.json".to_owned(),
            message: Box::new(Message::new("refused").remedy("the role needs s3:GetObject")),
            source: "403 AccessDenied not authorized to perform s3:ListBucket".into(),
        };
        let Verdict::Fails { detail, remedy } = judge_bucket(&config, Err(denied)) else {
            panic!("refused")
        };
        assert!(detail.contains("s3:ListBucket") && remedy.contains("s3:GetObject"), "{detail}");
        let Verdict::Works(detail) = judge_bucket(&config, Ok(())) else { panic!("it answers") };
        assert!(detail.contains("ARCHIVE_OBJECTS=complete"), "{detail}");
    }

    #[test]
    fn credentials_show_the_end_of_their_key_and_their_expiry() {
        let now = SystemTime::now();
        let Verdict::Works(text) = judge_credentials("AKIDEXAMPLE", None, now) else {
            panic!("found")
        };
        assert!(text.ends_with("MPLE") && !text.contains("AKID"), "{text}");
        let hour = Duration::from_hours(1);
        assert!(matches!(judge_credentials("AK", Some(now + hour), now), Verdict::Works(_)));
        assert!(matches!(judge_credentials("AK", Some(now - hour), now), Verdict::Fails { .. }));
    }
}
