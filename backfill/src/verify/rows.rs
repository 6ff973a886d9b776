//! `verify --against`: our rows and those of another database.
//!
//! Both tables are walked together in the order of the key, a range at a time. One side leads: its
//! next rows come as digests of about a thousand each. The other side gives the digests of the same
//! spans of keys. Only the keys and versions of spans that differ are listed. No statement reads
//! more rows than its range, so none holds a snapshot for long.
//!
//! Each range ends at a key of the side that leads. If the other side has many more rows there, it
//! leads instead; if the side that leads has no more rows, the other one leads to its own end. So
//! all keys of both sides are covered, each once.

pub(crate) mod chunks;
pub(crate) mod columns;
pub(crate) mod judge;
pub(crate) mod rounds;
pub(crate) mod side;
pub(crate) mod statements;

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::{join, try_join};
use projector::apply::Pace;
use projector::database::Database;

use crate::cli::VerifyArguments;
use crate::console::{self, Progress};
use crate::peer::Peer;
use crate::statement;
use crate::verify::report::Report;
use crate::verify::rows::chunks::{Chunk, Span, differing};
use crate::verify::rows::columns::{Types, in_both, required};
use crate::verify::rows::judge::suspects;
use crate::verify::rows::rounds::{MOST, Rounds};
use crate::verify::rows::side::{Answer, Scope, Side, types};
use crate::verify::rows::statements::{ALL_SAMPLED, Statements};
use crate::verify::{End, Run};

/// How many rows a range and a chunk have at most: by versions, and if all values are read.
const ROWS: (usize, usize) = (50_000, 1_000);
const ROWS_WITH_VALUES: (usize, usize) = (2_000, 100);

/// Compares all rows after `--after`. What it found is in the run, however it ended.
///
/// # Errors
/// If a database cannot be read for some minutes, or has another schema.
pub(crate) async fn compare(
    ours: &Database,
    peer: &Peer,
    arguments: &VerifyArguments,
    run: &mut Run<'_>,
) -> anyhow::Result<End> {
    let stop = run.stop;
    let starting = Box::pin(Walk::start(ours, peer, arguments, &run.compared_through));
    let mut walk = tokio::select! {
        biased;
        () = stop.wait() => return Ok(End::Stopped),
        walk = starting => walk?,
    };
    let ended = tokio::select! {
        biased;
        () = stop.wait() => Ok(End::Stopped),
        ended = Box::pin(walk.until_done(run)) => ended,
    };
    let Walk { through, mut rounds, .. } = walk;
    rounds.resume_after().unwrap_or(&through).clone_into(&mut run.compared_through);
    if !matches!(ended, Ok(End::AllCompared)) {
        rounds.leave_unconfirmed(&mut run.report);
    }
    ended
}

/// Where the comparison is.
struct Walk<'a> {
    /// Ours, and the other one.
    sides: [Side<'a>; 2],
    /// Which of them leads.
    leads: usize,
    /// Which of them have no row after `through`.
    ended: [bool; 2],
    pace: Pace,
    /// At most this many rows per range, whatever the pace.
    most_rows: usize,
    /// Everything up to this key was compared.
    through: String,
    rounds: Rounds<'a>,
    progress: Progress,
}

/// The next rows of the side that leads.
struct Page {
    chunks: Vec<Chunk>,
    /// How many rows were asked for.
    limit: usize,
    took: Duration,
}

impl Page {
    fn rows(&self) -> usize {
        let rows: u64 = self.chunks.iter().map(|chunk| chunk.sum.rows).sum();
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// There was no other row.
    fn is_last(&self) -> bool {
        self.rows() < self.limit
    }
}

impl<'a> Walk<'a> {
    async fn start(
        ours: &'a Database,
        peer: &'a Peer,
        arguments: &VerifyArguments,
        after: &str,
    ) -> anyhow::Result<Self> {
        let theirs = async {
            types(&peer.database).await.with_context(|| format!("the peer {}", peer.name))
        };
        let (our_types, their_types) = try_join(types(ours), theirs).await?;
        refuse_other_schemas("the database of DATABASE_URL", &our_types)?;
        refuse_other_schemas(&format!("the peer {}", peer.name), &their_types)?;
        let (columns, left_out) = in_both(&our_types, &their_types);
        if !left_out.is_empty() {
            let left_out = left_out.join(", ");
            console::line(&format!("not compared, since one database alone has it: {left_out}"));
        }
        let (rows, chunk) = if arguments.deep { ROWS_WITH_VALUES } else { ROWS };
        let scope =
            Scope { chunk, sampled_below: sampled_below(arguments), since: arguments.since };
        let side = |whose, database, types| {
            let statements = Statements::new(&columns, types, scope.since.is_some());
            Side { whose, database, statements, scope }
        };
        let ours = side("our database", ours, &our_types);
        let theirs = side(&peer.name, &peer.database, &their_types);
        Ok(Self {
            sides: [ours, theirs],
            leads: 0,
            ended: [false; 2],
            pace: Pace::new(rows),
            most_rows: arguments.max_rate.map_or(rows, |rate| rate as usize),
            through: after.to_owned(),
            rounds: Rounds::new(ours, theirs, columns),
            progress: Progress::start(
                statement::count_rows(ours.database, "count the rows", after).await?,
            ),
        })
    }

    /// Compares all ranges, then reads again what differs.
    async fn until_done(&mut self, run: &mut Run<'_>) -> anyhow::Result<End> {
        let mut next = None;
        loop {
            let page = match next.take() {
                Some(page) => page,
                None => self.lead(&self.through, self.limit()).await?,
            };
            let Some(page) = self.unless_too_much(page) else { continue };
            if page.chunks.is_empty() {
                self.ended[self.leads] = true;
                if self.ended == [true; 2] {
                    break;
                }
                self.leads = 1 - self.leads;
                continue;
            }
            run.rate.take(page.rows() as f64).await;
            next = Box::pin(self.range(page, &mut run.report)).await?;
            if self.rounds.len() > MOST && Box::pin(self.too_many(run)).await? {
                return Ok(End::TooManyDiffer);
            }
        }
        self.progress.finish();
        Box::pin(self.rounds.settle(run.rounds, run.wait)).await?;
        self.rounds.report(&mut run.report)?;
        Ok(End::AllCompared)
    }

    /// Compares one range, and reads the next page of the side that leads meanwhile. That is lost
    /// if this range has to be asked for again.
    async fn range(
        &mut self,
        page: Page,
        report: &mut Report,
    ) -> anyhow::Result<Option<Answer<Page>>> {
        let Some(last) = page.chunks.last().map(|chunk| chunk.last.clone()) else {
            return Ok(None);
        };
        let (limit, other) = (page.limit * 2, self.sides[1 - self.leads]);
        let following = other.follow(&self.through, &page.chunks, limit, page.rows() > 1);
        let reading_on = async {
            if page.is_last() { None } else { Some(self.lead(&last, self.limit()).await) }
        };
        let (followed, next) = join(following, reading_on).await;
        let Answer { answer, took } = followed?;
        let Some(sums) = answer else {
            self.pace.too_much(page.rows(), took);
            return Ok(None);
        };
        let rows: u64 = sums.values().map(|sum| sum.rows).sum();
        if rows >= limit as u64 {
            // The range was cut: it has many more rows there.
            self.leads = 1 - self.leads;
            return Ok(None);
        }
        let (spans, equal) = differing(&self.through, &page.chunks, &sums);
        report.tally.compared += equal;
        for span in spans {
            Box::pin(self.list(&span, report)).await?;
        }
        self.pace.done(page.rows(), page.took.max(took));
        self.through = last;
        self.show(rows.max(page.rows() as u64), report);
        next.transpose()
    }

    /// Finds the sessions that differ in a span of keys.
    async fn list(&mut self, span: &Span, report: &mut Report) -> anyhow::Result<()> {
        let [ours, theirs] = &self.sides;
        let Span { after, through } = span;
        let (ours, theirs) =
            try_join(ours.list(after, through), theirs.list(after, through)).await?;
        let (suspects, sessions) = suspects(&ours, &theirs);
        Box::pin(self.rounds.add(after, suspects)).await?;
        report.tally.compared += sessions;
        Ok(())
    }

    async fn lead(&self, after: &str, limit: usize) -> anyhow::Result<Answer<Page>> {
        let Answer { answer, took } = self.sides[self.leads].lead(after, limit).await?;
        Ok(Answer { answer: answer.map(|chunks| Page { chunks, limit, took }), took })
    }

    /// The page, unless it has to be asked for again with fewer rows.
    fn unless_too_much(&mut self, page: Answer<Page>) -> Option<Page> {
        if page.answer.is_none() {
            self.pace.too_much(self.limit(), page.took);
        }
        page.answer
    }

    fn limit(&self) -> usize {
        self.pace.limit().min(self.most_rows)
    }

    /// Whether too many sessions differ, even after they were read again. They are reported then.
    async fn too_many(&mut self, run: &mut Run<'_>) -> anyhow::Result<bool> {
        Box::pin(self.rounds.settle(1, run.wait)).await?;
        let too_many = self.rounds.len() > MOST;
        if too_many {
            console::line(&format!(
                "more than {MOST} sessions differ, so the comparison ends here: update the rows \
                 first, with `backfill merge`"
            ));
            self.rounds.report(&mut run.report)?;
        }
        Ok(too_many)
    }

    fn show(&mut self, rows: u64, report: &Report) {
        let text = format!("{} differ as last read", self.rounds.len());
        self.progress.advance_sessions(rows, (report.tally.compared, "compared"), &text);
    }
}

/// The share as a bound on the first 32 bits of a key's md5.
fn sampled_below(arguments: &VerifyArguments) -> i64 {
    if arguments.deep {
        return ALL_SAMPLED;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the share is from 0 to 1")]
    let below = (arguments.sample * ALL_SAMPLED as f64).round() as i64;
    below
}

fn refuse_other_schemas(whose: &str, types: &Types) -> anyhow::Result<()> {
    let missing: Vec<String> =
        required().into_iter().filter(|name| !types.contains_key(name)).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        bail!("{whose} has a table measurements of another schema: it lacks {missing}");
    }
    Ok(())
}
