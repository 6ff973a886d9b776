//! One look at both sides: every probe at the same time, each with what it needs of the others.

use std::time::Duration;

use aws_config::SdkConfig;
use projector::change::Tables;
use projector::config::Config;
use projector::database::Database;
use projector::start;
use time::OffsetDateTime;

use super::condition::Asked;
use super::limits::{within, within_limit};
use super::observed::{
    Archive, Databases, Function, Metrics, Observed, Reader, Replication, Sample, Since, Table,
    Verified,
};
use super::{cloudwatch, database, lambda, s3};

use crate::cli::{ReadyArguments, verify_since};
use crate::commands::doctor::impatient;
use crate::peer;
use crate::rate::Rate;
use crate::stop::Stop;
use crate::verify::difference::Difference;
use crate::verify::report::Report;
use crate::verify::{End, Run, rows};

/// A verify of what changed since the last one reads what differs again after this pause.
const VERIFY_PAUSE_SECONDS: u32 = 10;
/// For all of that verify.
const VERIFY_LIMIT: Duration = Duration::from_mins(10);

/// The flag that names the old database.
const FLAG: &str = "--against";

/// The old database: its connections, and its name without credentials.
type Old = (Database, String);

/// What is asked, look by look.
pub(super) struct Looking<'a> {
    config: Config,
    arguments: &'a ReadyArguments,
    stop: &'a Stop,
}

impl<'a> Looking<'a> {
    pub(super) fn new(config: Config, arguments: &'a ReadyArguments, stop: &'a Stop) -> Self {
        let config = Config { archive: None, ..config };
        Self { config, arguments, stop }
    }

    /// Asks everything.
    pub(super) async fn look(&self) -> Observed {
        let now = OffsetDateTime::now_utc();
        // Connects to nothing; a login by secret or token needs AWS.
        let projector = start::projector_with_credentials(self.config.clone()).await;
        let new = projector.map(|projector| projector.database).map_err(|error| error.to_string());
        let given = self.arguments.against.as_deref().unwrap_or_default();
        let connections = self.config.database.connections;
        let old = peer::named(FLAG, given, connections).map_err(|error| error.to_string());
        let aws = aws().await;
        let (databases, (functions, tables, metrics, archive)) = tokio::join!(
            Box::pin(self.databases(&new, &old)),
            Box::pin(self.aws(&aws, &new, now)),
        );
        Observed { now, functions, tables, metrics, archive, databases }
    }

    async fn databases(&self, new: &Asked<Database>, old: &Asked<Old>) -> Databases {
        let whom = ["the new database", "the old database", "a database"];
        let (schemas, rejected, pending_objects, verified, statistics, settings, relations, reader) = tokio::join!(
            async {
                tokio::join!(
                    within(whom[0], async { database::applied(known(new)?).await }),
                    within(whom[1], async { database::applied(&known(old)?.0).await }),
                )
            },
            within(whom[2], async { database::rejected(known(new)?, &known(old)?.0).await }),
            within(whom[0], async { database::pending_objects(known(new)?).await }),
            self.verified(new, old),
            within(whom[0], async { database::statistics(known(new)?).await }),
            within(whom[2], async {
                let (new, old) = (known(new)?, &known(old)?.0);
                let (new, old) = tokio::join!(database::settings(new), database::settings(old));
                Ok([new?, old?])
            }),
            within(whom[0], async { database::relations(known(new)?).await }),
            self.reader(new),
        );
        let ((new_schema, old_schema), (verified, since)) = (schemas, verified);
        Databases {
            new_schema,
            old_schema,
            rejected,
            pending_objects,
            verified,
            since,
            statistics,
            settings,
            accepted_settings: self.arguments.accept_setting.clone(),
            relations,
            reader,
        }
    }

    /// The last full verify, and one of what changed since then.
    async fn verified(
        &self,
        new: &Asked<Database>,
        old: &Asked<Old>,
    ) -> (Asked<Verified>, Option<Asked<Since>>) {
        let verified = within("the new database", async {
            database::verified(known(new)?, &known(old)?.1).await
        });
        let verified = verified.await;
        let Ok(Some(full)) = verified.as_ref().map(|verified| verified.last.as_ref()) else {
            return (verified, None);
        };
        let time = full.started_at;
        let comparing = async { Box::pin(self.since(known(new)?, time)).await };
        let since = within_limit("the verify", VERIFY_LIMIT, Box::pin(comparing)).await;
        (verified, Some(since))
    }

    /// What changed since a time, compared as `verify` does, until what differs is older than the
    /// lag that is allowed.
    async fn since(&self, new: &Database, time: OffsetDateTime) -> Asked<Since> {
        let given = self.arguments.against.as_deref().unwrap_or_default();
        let connecting =
            async { peer::connect(FLAG, given, new).await.map_err(|error| format!("{error:#}")) };
        let peer = within("the old database", connecting).await?;
        let rounds = self.arguments.lag_seconds / VERIFY_PAUSE_SECONDS + 2;
        let mut run = Run {
            stop: self.stop,
            report: Report::default(),
            rate: Rate::new(None),
            wait: Duration::from_secs(VERIFY_PAUSE_SECONDS.into()),
            rounds: u16::try_from(rounds).unwrap_or(u16::MAX),
            compared_through: String::new(),
            as_of: None,
        };
        let verify = verify_since(time)?;
        let ended = Box::pin(rows::compare(new, &peer, &verify, &mut run)).await;
        let ended = ended.map_err(|error| format!("{error:#}"))?;
        let tally = run.report.tally;
        Ok(Since {
            time,
            compared: tally.compared,
            differences: tally.differences(),
            first: run.report.named().iter().map(Difference::text).collect(),
            complete: ended == End::AllCompared,
        })
    }

    async fn reader(&self, new: &Asked<Database>) -> Option<Asked<Reader>> {
        if self.arguments.no_readers {
            return None;
        }
        let url = self.arguments.reader_url.as_deref().filter(|url| !url.is_empty());
        let asking = async {
            let url = url.ok_or_else(|| "READER_DATABASE_URL is not set".to_owned())?;
            database::reader(url, known(new)?).await
        };
        Some(within("the readers' login", asking).await)
    }

    async fn aws(
        &self,
        aws: &Asked<SdkConfig>,
        new: &Asked<Database>,
        now: OffsetDateTime,
    ) -> ([Function; 2], Vec<Table>, Asked<Metrics>, Archive) {
        let Tables { sessions, scans } = &self.config.tables;
        let names = [self.arguments.function.as_str(), self.arguments.old_function.as_str()];
        let tables = [sessions.as_str(), scans.as_str()];
        let aws = match aws {
            Ok(aws) => aws,
            Err(why) => return self.without_aws(why),
        };
        let ((new_function, old_function, archive), sessions, scans, metrics) = tokio::join!(
            async {
                let (new_function, old_function) =
                    tokio::join!(function(aws, names[0]), function(aws, names[1]));
                let archive =
                    Box::pin(self.archive(aws, [&new_function, &old_function], new, now)).await;
                (new_function, old_function, archive)
            },
            lambda::table(aws, tables[0]),
            lambda::table(aws, tables[1]),
            cloudwatch::metrics(aws, names, tables, now),
        );
        ([new_function, old_function], vec![sessions, scans], metrics, archive)
    }

    fn without_aws(&self, why: &str) -> ([Function; 2], Vec<Table>, Asked<Metrics>, Archive) {
        let function = |name: &String| Function {
            name: name.clone(),
            mappings: Err(why.to_owned()),
            archive: Err(why.to_owned()),
            failures: Err(why.to_owned()),
            alarms: Err(why.to_owned()),
        };
        let Tables { sessions, scans } = &self.config.tables;
        let table =
            |name: &String| Table { name: name.clone(), latest_stream: Err(why.to_owned()) };
        let archive = if self.arguments.no_archive {
            Archive::OutOfScope
        } else {
            Archive::Seen { replication: Err(why.to_owned()), sample: Err(why.to_owned()) }
        };
        let functions = [&self.arguments.function, &self.arguments.old_function].map(function);
        (functions, [sessions, scans].map(table).into(), Err(why.to_owned()), archive)
    }

    async fn archive(
        &self,
        aws: &SdkConfig,
        functions: [&Function; 2],
        new: &Asked<Database>,
        now: OffsetDateTime,
    ) -> Archive {
        if self.arguments.no_archive {
            return Archive::OutOfScope;
        }
        let (replication, sample) =
            tokio::join!(replication(aws, functions, now), sample(aws, functions[0], new),);
        Archive::Seen { replication, sample }
    }
}

/// What could be had, or why not.
fn known<T>(asked: &Asked<T>) -> Asked<&T> {
    asked.as_ref().map_err(Clone::clone)
}

/// The client configuration of every question.
async fn aws() -> Asked<SdkConfig> {
    let aws = Box::pin(start::aws_with_credentials()).await.map_err(|error| error.to_string())?;
    Ok(impatient(aws))
}

/// A function, and what is around it.
async fn function(aws: &SdkConfig, name: &str) -> Function {
    let of_mappings = async {
        let mappings = lambda::mappings(aws, name).await;
        let failures = match &mappings {
            Ok(mappings) => s3::failures(aws, mappings).await,
            Err(why) => Err(why.clone()),
        };
        (mappings, failures)
    };
    let ((mappings, failures), archive, alarms) =
        tokio::join!(of_mappings, lambda::archive(aws, name), cloudwatch::alarms(aws, name));
    Function { name: name.to_owned(), mappings, archive, failures, alarms }
}

/// What copies the old archive to the new one.
async fn replication(
    aws: &SdkConfig,
    [new, old]: [&Function; 2],
    now: OffsetDateTime,
) -> Asked<Replication> {
    let Some(to) = known(&new.archive)? else {
        return Err(format!("{} has no ARCHIVE_BUCKET", new.name));
    };
    let none = |between: String| Replication { between, ..Replication::default() };
    let Some(from) = known(&old.archive)? else {
        return Ok(none(format!("{} has no ARCHIVE_BUCKET", old.name)));
    };
    if from.bucket == to.bucket {
        return Ok(none(format!("both write {}", to.bucket)));
    }
    let buckets = [from.bucket.as_str(), to.bucket.as_str()];
    let rules = s3::rules(aws, buckets).await?;
    // The rule of infra/archive.yaml has this name, and its metrics outlive it.
    let mut measured = rules.clone();
    measured.push(format!("to-{}", to.bucket));
    measured.sort_unstable();
    measured.dedup();
    let [pending, failed] = cloudwatch::replication(aws, buckets, &measured, now).await?;
    let between = format!("{} to {}", from.bucket, to.bucket);
    Ok(Replication { between, rules, pending, failed })
}

/// Objects of the new archive.
async fn sample(aws: &SdkConfig, function: &Function, new: &Asked<Database>) -> Asked<Sample> {
    match known(&function.archive)? {
        Some(config) => s3::sample(aws, config, known(new)?).await,
        None => Err(format!("{} has no ARCHIVE_BUCKET", function.name)),
    }
}
