//! `redrive` of a database that has had a repair: above an image, the version of a late record
//! proves nothing. So each record is a key, whose item is read again as `repair` does it.

use projector::start;

use crate::advisory_lock::Held;
use crate::cli::RedriveArguments;
use crate::commands::repair::report;
use crate::console;
use crate::deliver::Delivery;
use crate::items::api::TablesApi;
use crate::outcome::Outcome;
use crate::output::Output;
use crate::rejected_records::Filter;
use crate::repair::conduct::{self, Conductor, Connections, Origin};
use crate::repair::ledger;
use crate::repair::source::{RejectedKeys, Source};
use crate::stop::Stop;

/// Where the keys come from.
const ORIGIN: Origin = Origin {
    command: "backfill redrive",
    ledger: ledger::Source::Redrive,
    name: "rejected records, after a repair",
};

/// Which records.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) filter: Filter<'a>,
    /// How many, or an estimate.
    pub(super) records: u64,
}

/// `lock` is `None` in a dry run, and behind a pooler, which is refused.
pub(super) async fn run(
    (delivery, lock): (Delivery, Option<Held>),
    arguments: &RedriveArguments,
    Keys { filter, records }: Keys<'_>,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    console::line(
        "this database has had a repair: the item of each record is read again, and its image is \
            not applied",
    );
    if arguments.dry_run {
        let text = format!("dry run, nothing was read: {records} records name their items\n");
        let json = serde_json::json!({
            "ended": "done",
            "dry_run": true,
            "source": ORIGIN.name,
            "records": records,
        });
        output.result(|| text, || Ok(json))?;
        return Ok(Outcome::Done);
    }
    let aws = Box::pin(start::aws_with_credentials()).await?;
    let projector = delivery.shared_projector();
    let api = TablesApi::new(&aws, projector.tables.clone(), arguments.reading.read_units);
    let reading = &arguments.reading;
    let conductor = Conductor { projector, aws: &aws, api, reading, max_rate: None, stop };
    let connections = Connections::apart_from(&conductor.projector.database);
    let looker = conduct::looker(&conductor.projector, &conductor.api, &connections).await?;
    let (database, tables) = (&connections.source, &conductor.projector.tables);
    let open =
        async |_| Ok((Source::Rejected(RejectedKeys::new(database, tables, filter)), records));
    let conducted = Box::pin(conductor.run((ORIGIN, lock), open, &looker)).await?;
    report(conducted, ORIGIN, output)
}
