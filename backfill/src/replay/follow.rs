//! `--follow`: finds the streams that are enabled while the run goes on, and reads them too.
//!
//! A stream that is turned off and on again is a new stream, with another ARN. The old one ends,
//! and without this its end would look like the end of the changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use projector::change::{Misconfigured, Tables};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::console::{self, clock};
use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::page::Message;
use crate::replay::shards::read_stream;
use crate::replay::source::Stream;

/// How often the tables are asked for new streams.
const FIND_EVERY: Duration = Duration::from_secs(5);
/// How often a table that has no stream at all is named.
const REMIND_EVERY: u32 = 60;

/// What [`new_streams`] needs.
pub(crate) struct Following {
    pub(crate) context: Arc<ReplayContext>,
    pub(crate) tables: Tables,
    /// The streams that are read already.
    pub(crate) known: Vec<Stream>,
    pub(crate) child_patience: Duration,
    pub(crate) messages: mpsc::Sender<Message>,
}

/// Reads each stream that is enabled from now on. It ends only with the run.
///
/// # Errors
/// If a new stream has no new images, or a stream cannot be read.
pub(crate) async fn new_streams(mut following: Following) -> anyhow::Result<()> {
    let mut readers: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut rounds = 0_u32;
    loop {
        tokio::select! {
            Some(ended) = readers.join_next() => ended.context("a reader panicked")??,
            () = tokio::time::sleep(FIND_EVERY) => {
                for run in following.find(rounds.is_multiple_of(REMIND_EVERY)).await? {
                    let (context, messages) =
                        (Arc::clone(&following.context), following.messages.clone());
                    // The collector knows the stream before its first page.
                    let _ = messages.send(Message::NewStream(Arc::clone(&run))).await;
                    readers.spawn(read_stream(context, run, following.child_patience, messages));
                }
                rounds = rounds.wrapping_add(1);
            }
        }
    }
}

impl Following {
    /// The streams that were not known before.
    async fn find(&mut self, remind: bool) -> anyhow::Result<Vec<Arc<StreamRun>>> {
        let mut new = Vec::new();
        let Tables { sessions, scans } = self.tables.clone();
        for table in [sessions, scans] {
            let asked_at = OffsetDateTime::now_utc();
            let Some(streams) = self.context.source.list_streams(&table).await? else {
                if remind {
                    console::line(&format!(
                        "{table}: there is no such table any more; waiting for it, and going on \
                         with the other table. End this run if it will not come back"
                    ));
                }
                continue;
            };
            if streams.is_empty() && remind {
                console::line(&format!("{table}: has no stream: what is written now is in none"));
            }
            let (mut all_known, mut known) = (true, Vec::new());
            for stream in streams.into_iter().filter(|stream| !self.known.contains(stream)) {
                match self.begin(&stream).await? {
                    Some(run) => {
                        self.context.through().of(&stream);
                        known.push(stream);
                        new.push(run);
                    }
                    None => all_known = false,
                }
            }
            self.known.append(&mut known);
            if all_known {
                self.context.through().listed(&table, asked_at);
            }
        }
        Ok(new)
    }

    /// `None`: it cannot be described yet.
    async fn begin(&self, stream: &Stream) -> anyhow::Result<Option<Arc<StreamRun>>> {
        let Some(description) = self.context.source.describe(stream).await? else {
            return Ok(None);
        };
        if !description.has_new_images() {
            let (table, view_type) = (stream.table.clone(), description.view_type);
            return Err(Misconfigured::NoNewImages { table, view_type }.into());
        }
        let since = description
            .enabled_since
            .map_or_else(String::new, |since| format!(", enabled at {}", clock(since)));
        let remark = format!(
            "{}: a new stream{since}, is followed too. What was written between the end of the old \
             stream and then is in no stream: run `backfill repair --scan`, which reads the items \
             themselves",
            stream.table
        );
        console::line(&remark);
        self.context.findings().remarks.push(remark);
        let mut run = StreamRun::new(stream.clone(), description.shards, HashMap::new());
        run.enabled_during_run = description.enabled_since;
        Ok(Some(Arc::new(run)))
    }
}
